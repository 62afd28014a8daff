import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dynamo.cli import kvbm
from dynamo.testing.waiting import eventually
from tests.kvbm.scripted_service import attach
from tests.kvbm.services import TestEngine, service


@pytest.fixture
async def socket(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """Of a service with twenty blocks in its pool."""
    path = tmp_path_factory.mktemp("k") / "s"
    async with service(path):
        engine = TestEngine(path, attach(), attach(rank=0))
        await engine.store(range(20))
        await engine.find(range(20))
        yield path
        engine.close()


async def run(socket: Path, *arguments: str) -> int:
    return await asyncio.to_thread(kvbm.main, [*arguments, "--kvbm-socket", str(socket)])


async def test_looking_and_clearing(socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(socket, "inspect") == 0
    text = capsys.readouterr().out
    assert text.startswith("m  6e6e")
    assert "1 engine," in text
    assert " in use" in text
    assert next(line.split() for line in text.splitlines() if "host" in line)[1] == "20"

    assert await run(socket, "clear", "--namespace", "00") == 1
    assert "no pool 00" in capsys.readouterr().err
    assert await run(socket, "inspect", "--json") == 0
    pool = json.loads(capsys.readouterr().out)["pools"][0]
    assert (pool["namespace"], pool["tiers"][0]["blocks"]) == ("6e" * 16, 20), "it was another one's"
    assert await run(socket, "clear") == 0
    capsys.readouterr()
    assert await run(socket, "inspect", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pools"][0]["tiers"][0]["blocks"] == 0


async def test_verifying_and_stopping(socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(socket, "verify") == 0
    assert capsys.readouterr().out == "0 blocks read, 0 dropped\n"
    assert await run(socket, "stop") == 0
    await eventually(lambda: not socket.exists())
    assert await run(socket, "inspect") == 1


def test_without_a_service_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kvbm.main(["inspect", "--kvbm-socket", str(tmp_path / "s")]) == 1
    error = capsys.readouterr().err
    assert "no block manager" in error
    assert "--kvbm-host-gb" in error


def test_a_deployments_name_is_no_pools(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kvbm.main(["inspect", "--namespace", "serve-8000"])
    assert "'serve-8000' is no pool's identifier" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["grow"], ["clear", "--tier", "tape"], ["clear", "--namespace", "xy"]])
def test_what_is_not_understood(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        kvbm.main(arguments)
    assert exit_.value.code == 2
