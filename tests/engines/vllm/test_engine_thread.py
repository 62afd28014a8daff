import asyncio
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from dynamo.engines.vllm.engine_thread import EngineThread
from dynamo.testing.waiting import within


class FakeEngine:
    """Records in which thread it is built and stopped."""

    def __init__(self) -> None:
        self.built_in = threading.current_thread()
        self.stopped_in: threading.Thread | None = None

    def shut_down(self) -> None:
        self.stopped_in = threading.current_thread()


def engine_thread(build: Callable[[], FakeEngine] = FakeEngine) -> EngineThread[FakeEngine]:
    return EngineThread(build, FakeEngine.shut_down)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_VLLM_OWNER_PID", "")  # restored afterwards


async def test_one_thread_builds_keeps_and_stops_the_engine() -> None:
    thread = engine_thread()

    engine = await thread.start()
    assert engine.built_in is not threading.main_thread()
    assert engine.built_in.is_alive()
    await thread.stop()

    assert engine.stopped_in is engine.built_in


async def test_a_failed_build_is_raised_and_leaves_nothing_to_stop() -> None:
    def fail() -> FakeEngine:
        raise RuntimeError("no memory")

    thread = engine_thread(fail)

    with pytest.raises(RuntimeError, match="no memory"):
        await thread.start()
    await thread.stop()


async def test_processes_of_the_engine_do_not_notice_ctrl_c() -> None:
    blocked: list[int] = []

    def build() -> FakeEngine:
        process = sleeping_process()
        blocked.append(blocked_signals(process))
        process.kill()
        return FakeEngine()

    thread = engine_thread(build)

    await thread.start()
    await thread.stop()

    assert blocked[0] & 1 << signal.SIGINT - 1
    assert not blocked[0] & 1 << signal.SIGTERM - 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


async def test_stop_without_start() -> None:
    await engine_thread().stop()


async def test_stopping_kills_the_processes_of_an_unfinished_build() -> None:
    started = threading.Event()
    built: list[BaseProcess] = []

    def build() -> FakeEngine:
        """As vLLM: starts a process, waits until it is ready, and fails when it dies before."""
        process = sleeping_process()
        built.append(process)
        started.set()
        process.join()
        raise RuntimeError("the engine process has died")

    thread = engine_thread(build)
    starting = asyncio.create_task(thread.start())
    await asyncio.to_thread(started.wait, 30)

    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await within(thread.stop(), 10)

    assert built[0].exitcode == -9


def sleeping_process() -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    process.start()
    return process


def blocked_signals(process: BaseProcess) -> int:
    """A bit for each signal, the lowest for number 1."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("SigBlk:")]
    return int(line.split()[1], 16)
