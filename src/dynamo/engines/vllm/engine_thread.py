"""The thread that starts and stops vLLM."""

import asyncio
import logging
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from dynamo.engines.vllm.orphans import own_children

logger = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 15.0
_KILL_INTERVAL_S = 0.1


class Stoppable(Protocol):
    """The part of AsyncLLM that this module needs."""

    def shutdown(self) -> None: ...


EngineT = TypeVar("EngineT", bound=Stoppable)


class EngineThread(Generic[EngineT]):
    """Builds an engine, keeps it, and shuts it down, all in one thread of its own.

    Building blocks for half a minute and more, and stopping for seconds: the event loop must stay free for signals
    and health checks meanwhile. One thread does both and waits in between, because the engine's processes die with
    the thread that started them. It is a daemon: a build that hangs does not keep the process alive.
    """

    def __init__(self, build: Callable[[], EngineT]) -> None:
        self._build = build
        self._started: Future[EngineT] = Future()
        self._finished: Future[None] = Future()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._other_children: set[int | None] = set()

    async def start(self) -> EngineT:
        """The engine, once it is built; raises what the building raised."""
        self._other_children = {child.pid for child in multiprocessing.active_children()}
        for future in (self._started, self._finished):
            future.set_running_or_notify_cancel()  # a cancelled waiter must not cancel the future for the thread
        own_children()
        self._thread.start()
        return await asyncio.wrap_future(self._started)

    async def stop(self) -> None:
        """Shuts the engine down, or breaks off its start; returns when its processes are gone."""
        if not self._thread.ident:
            return
        self._stop.set()
        finished = asyncio.wrap_future(self._finished)
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                while not self._started.done():
                    self._kill_children()  # makes the build fail, which nothing else can break off
                    await asyncio.wait({finished}, timeout=_KILL_INTERVAL_S)
                await finished
        except TimeoutError:
            logger.warning("vLLM did not stop within %s s", _STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._keep()
        finally:
            self._finished.set_result(None)

    def _keep(self) -> None:
        try:
            engine = self._build()
        except BaseException as error:  # noqa: BLE001 - the thread's boundary: start() raises it
            self._started.set_exception(error)
            return
        self._started.set_result(engine)
        self._stop.wait()
        engine.shutdown()

    def _kill_children(self) -> None:
        for child in multiprocessing.active_children():
            if child.pid not in self._other_children:
                child.kill()
