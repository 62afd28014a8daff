"""`dynamo profile` of the simulated engine, which should say what the engine's timing model does."""

import asyncio
from pathlib import Path

import pytest

from dynamo.cli.main import main
from dynamo.engines.mocker.timing import TimingModel
from dynamo.planner.interpolated import InterpolatedModel
from dynamo.planner.profile_file import read_profile
from dynamo.testing import program
from dynamo.testing.deployment import deployment

TIMING = TimingModel()
SLOWER = 1.3  # what this machine may add to the model's time; nothing makes it faster
SHORT = ("--prompt-lengths", "256,4096", "--contexts", "256,99999", "--concurrencies", "1,8")


@pytest.mark.alone
async def test_of_a_server_that_it_starts(tiny_model: Path, environ: dict[str, str], tmp_path: Path) -> None:
    output, plot = tmp_path / "mocker.json", tmp_path / "mocker.png"
    flags = ["--engine", "mocker", "--output", str(output), "--plot", str(plot), "--duration-s", "30", *SHORT]
    command = ("-m", "dynamo.cli.main", "profile", str(tiny_model), *flags, "--", "--max-model-len", "8192")
    async with program(command, environ) as profiling:
        assert await profiling.exit_code(90) == 0, profiling.output
    assert "left out: 1 at once of 99999 tokens: HTTP 400" in profiling.output
    assert plot.read_bytes().startswith(b"\x89PNG")
    profile = read_profile(output)
    assert (profile.engine, profile.model) == ("mocker", "tiny")
    assert [point.prompt_tokens for point in profile.prefill] == [256, 4096]
    assert [(point.context_tokens, point.concurrency) for point in profile.decode] == [(256, 1), (256, 8)]
    for point in profile.prefill:  # the shares of frontend and client are in it, which take milliseconds
        assert point.ttft_s >= TIMING.step_s(new_tokens=point.prompt_tokens, decoding=False, usage=0)
    itl_s = TIMING.step_s(new_tokens=0, decoding=True, usage=8 * 256 / 64 / 16384)
    assert 0.9 * itl_s <= InterpolatedModel(profile).itl_s(256, 8) <= SLOWER * itl_s


async def test_of_a_running_server(tiny_model: Path, tmp_path: Path) -> None:
    """In the time that is given: what there is no time for is left out."""
    output = tmp_path / "mocker.json"
    flags = ["--output", str(output), "--prompt-lengths", "64", "--contexts", "64", "--concurrencies", "1,2"]
    async with deployment() as deployed:
        _, url = await deployed.frontend()
        await deployed.mocker(tiny_model, "tiny")
        command = ("-m", "dynamo.cli.main", "profile", "tiny", "--engine", "mocker", "--url", url, *flags)
        async with asyncio.timeout(60), program(command) as profiling:
            assert await profiling.exit_code(60) == 0, profiling.output
    assert len(read_profile(output).decode) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--contexts", "1,x"], "--contexts takes whole numbers"),
        (["--contexts", "0"], "0 is less than 1"),
        (["--output", "/nowhere/at/all.json"], "there is no directory /nowhere/at"),
        (["--url", "http://127.0.0.1:1"], "does not answer"),
        (["--url", "nonsense"], "--url is written http(s)://host:port, not 'nonsense'"),
        (["--url", "http://127.0.0.1:x"], "--url is written"),
        (["--contexts", "1,99999999999"], "99999999999 is more than 10000000"),
        (["--output", "/"], "/ is a directory"),
    ],
)
def test_says_what_is_wrong(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "tiny", "--engine", "mocker", *flags]) == 1
    assert message in capsys.readouterr().err


def test_says_why_the_server_did_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--engine", "mocker", "--output", str(tmp_path / "p.json")]
    assert main(["profile", str(tmp_path / "no-model"), *flags]) == 1
    err = capsys.readouterr().err
    assert "the server does not start" in err
    assert "no-model" in err
