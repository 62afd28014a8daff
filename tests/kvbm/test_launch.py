"""Workers that find a service, or start one."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamo.errors import ConfigError, UnavailableError
from dynamo.kvbm.admin import ask
from dynamo.kvbm.config import KvbmOptions
from dynamo.kvbm.election import elected
from dynamo.kvbm.launch import ensure_service, service_command
from dynamo.protocols.kvbm import Figures, Inspect, Stop
from dynamo.runtime.config import RuntimeConfig
from dynamo.testing.program import program
from dynamo.testing.waiting import eventually

WORKER = """
import sys
from pathlib import Path
from dynamo.kvbm.config import KvbmOptions
from dynamo.kvbm.launch import ensure_service
from dynamo.runtime.config import RuntimeConfig
print("has", ensure_service(KvbmOptions(host_gb=1, socket=sys.argv[1], linger_s=30.0), RuntimeConfig()), flush=True)
"""


@pytest.fixture(autouse=True)
def nothing_left_behind(path: Path) -> Iterator[None]:
    yield
    with contextlib.suppress(Exception):
        ask(path, Stop(), 5.0)


def services_of(path: Path) -> list[int]:
    """The processes that were started for this socket."""
    found = []
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if directory.name.isdecimal() and f"--kvbm-socket\0{path}\0".encode() in (
                directory / "cmdline"
            ).read_bytes().replace(b"\0\0", b"\0"):
                found.append(int(directory.name))
    return found


async def test_workers_that_start_together_have_one_service_which_outlives_them(path: Path) -> None:
    async with program(["-c", WORKER, str(path)]) as one, program(["-c", WORKER, str(path)]) as other:
        for worker in (one, other):
            assert str(path) in await worker.line("has", 20)
            assert await worker.exit_code() == 0
    assert await asyncio.to_thread(ask, path, Inspect(), 5.0) == Figures(pools=[])
    log = await asyncio.to_thread(path.with_name(path.name + ".log").read_text)
    assert log.count("ready: ") == 1
    assert ensure_service(KvbmOptions(socket=str(path)), RuntimeConfig()) == path


async def test_a_successor_takes_the_place_of_one_that_was_killed(path: Path) -> None:
    options = KvbmOptions(socket=str(path), linger_s=30.0)
    await asyncio.to_thread(ensure_service, options, RuntimeConfig())
    (pid,) = await asyncio.to_thread(services_of, path)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: pid not in services_of(path))
    assert await asyncio.to_thread(ensure_service, options, RuntimeConfig()) == path
    assert isinstance(await asyncio.to_thread(ask, path, Inspect(), 5.0), Figures)


async def test_the_command_of_a_deployment(path: Path) -> None:
    config = RuntimeConfig(namespace="mine", rpc_port=5000, system_port=6000)
    interpreter, *arguments = service_command(path, config, None)
    assert interpreter == sys.executable
    async with program(arguments) as process:
        assert str(path) in await process.line("ready: ")
        process.signal(signal.SIGTERM)
        assert await process.exit_code() == 0


def test_where_somebody_else_starts_it_one_waits(path: Path) -> None:
    with pytest.raises(UnavailableError, match="no block manager has come up"):
        ensure_service(KvbmOptions(socket=str(path), start=False), RuntimeConfig(), 0.1)
    assert not path.with_suffix(".log").exists()


def test_one_that_cannot_start_is_said_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo.kvbm.launch._RIVAL_S", 0.1)
    monkeypatch.setattr("dynamo.kvbm.launch.service_command", lambda *_: ["/bin/false"])
    with pytest.raises(UnavailableError, match=r"s\.log may say why"):
        ensure_service(KvbmOptions(socket=str(path)), RuntimeConfig())


def test_one_whose_log_cannot_be_written_is_said_at_once(path: Path) -> None:
    path.with_name(path.name + ".log").mkdir()
    with pytest.raises(UnavailableError, match="could be started"):
        ensure_service(KvbmOptions(socket=str(path)), RuntimeConfig())


def test_a_socket_may_be_called_as_one_calls_logs(path: Path) -> None:
    named = path.with_name("kvbm.log")
    assert ensure_service(KvbmOptions(socket=str(named)), RuntimeConfig()) == named
    ask(named, Stop(), 5.0)


def test_a_lock_that_cannot_be_had(path: Path) -> None:
    path.with_name(path.name + ".lock").mkdir()
    with pytest.raises(ConfigError, match="whether there is a block manager"), elected(path):
        pass


def test_a_socket_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError):
        ensure_service(KvbmOptions(socket=str(tmp_path / "file" / "s")), RuntimeConfig())
