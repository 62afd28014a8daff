import asyncio
import multiprocessing
import threading
from multiprocessing.process import BaseProcess

import pytest

from dynamo.engines.vllm.engine_thread import EngineThread


class FakeEngine:
    """Records in which thread it is built and stopped."""

    def __init__(self) -> None:
        self.built_in = threading.current_thread()
        self.stopped_in: threading.Thread | None = None

    def shutdown(self) -> None:
        self.stopped_in = threading.current_thread()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_VLLM_OWNER_PID", "")  # restored afterwards


async def test_one_thread_builds_keeps_and_stops_the_engine() -> None:
    thread = EngineThread(FakeEngine)

    engine = await thread.start()
    assert engine.built_in is not threading.main_thread()
    assert engine.built_in.is_alive()
    await thread.stop()

    assert engine.stopped_in is engine.built_in


async def test_a_failed_build_is_raised_and_leaves_nothing_to_stop() -> None:
    def fail() -> FakeEngine:
        raise RuntimeError("no memory")

    thread = EngineThread(fail)

    with pytest.raises(RuntimeError, match="no memory"):
        await thread.start()
    await thread.stop()


async def test_stop_without_start() -> None:
    await EngineThread(FakeEngine).stop()


async def test_stopping_kills_the_processes_of_an_unfinished_build() -> None:
    started = threading.Event()
    built: list[BaseProcess] = []

    def build() -> FakeEngine:
        """As vLLM: starts a process, waits until it is ready, and fails when it dies before."""
        process = multiprocessing.get_context("spawn").Process(target=_sleep)
        process.start()
        built.append(process)
        started.set()
        process.join()
        raise RuntimeError("the engine process has died")

    thread = EngineThread(build)
    starting = asyncio.create_task(thread.start())
    await asyncio.to_thread(started.wait, 30)

    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await asyncio.wait_for(thread.stop(), timeout=10)

    assert built[0].exitcode == -9


def _sleep() -> None:
    threading.Event().wait(60)
