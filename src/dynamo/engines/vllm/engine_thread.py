"""The thread that starts and stops vLLM."""

import asyncio
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

from dynamo.engines.vllm.ownership import kill_tree, own_children

logger = logging.getLogger(__name__)

EngineT = TypeVar("EngineT")

_STOP_TIMEOUT_S = 15.0
_EXIT_TIMEOUT_S = 5.0
_KILL_INTERVAL_S = 0.1


class EngineThread(Generic[EngineT]):
    """Builds an engine, keeps it, and shuts it down, all in one thread of its own.

    Building blocks for half a minute and more, and shutting down for seconds: the event loop must stay free for
    signals and health checks meanwhile. One thread does both and waits in between, because the engine's processes die
    with the thread that started them. It is a daemon: a build that hangs does not keep the process alive.
    """

    def __init__(self, build: Callable[[], EngineT], shut_down: Callable[[EngineT], None]) -> None:
        self._build = build
        self._shut_down = shut_down
        self._started: Future[EngineT] = Future()
        self._finished: Future[None] = Future()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._strangers: set[int | None] = set()

    async def start(self) -> EngineT:
        """The engine, once it is built; raises what the building raised."""
        self._strangers = {child.pid for child in multiprocessing.active_children()}
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
            for child in self._children():
                child.join(_EXIT_TIMEOUT_S)
        finally:
            self._finished.set_result(None)

    def _keep(self) -> None:
        _shield_from_ctrl_c()
        try:
            engine = self._build()
        except BaseException as error:  # noqa: BLE001 - the thread's boundary: start() raises it
            self._started.set_exception(error)
            return
        self._started.set_result(engine)
        self._stop.wait()
        self._shut_down(engine)

    def _kill_children(self) -> None:
        for child in self._children():
            if child.pid is not None:
                kill_tree(child.pid)

    def _children(self) -> list[BaseProcess]:
        return [child for child in multiprocessing.active_children() if child.pid not in self._strangers]


def _shield_from_ctrl_c() -> None:
    """Blocks SIGINT for the processes that this thread starts, and for those that they start.

    A terminal sends it to all of them, but the worker still needs them to finish its requests, and stops them then.
    """
    resource_tracker.ensure_running()  # its start, which the first process would bring about, lifts the block
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
