"""`dynamo config` with a frontend that runs, and without."""

from pathlib import Path

import pytest

from dynamo.cli.main import main
from dynamo.testing.deployment import deployment
from dynamo.testing.program import program

GET, SET = ["-m", "dynamo.cli.main", "config", "get"], ["-m", "dynamo.cli.main", "config", "set"]
END_S = 30.0


async def test_settings_of_running_frontends() -> None:
    async with deployment() as deployed:
        await deployed.frontend("--max-local-prefill-length", "77")
        await deployed.frontend()
        environ = deployed.environ
        async with program(GET, environ) as got:
            assert await got.exit_code(END_S) == 0
        assert got.output.count("conditional-disagg=false") == 2
        assert got.output.count("max-local-prefill-length=77") == 1
        changes = ["conditional-disagg=true", "max_local_prefill_length=500"]
        async with program([*SET, *changes], environ) as changed:
            assert await changed.exit_code(END_S) == 0
        async with program(GET, environ) as got:
            assert await got.exit_code(END_S) == 0
        assert got.output.count("conditional-disagg=true") == 2
        assert got.output.count("max-local-prefill-length=500") == 2
        async with program([*GET, "--namespace", "other"], environ) as got:
            assert await got.exit_code(END_S) == 1
        assert "no frontend in namespace 'other'; there are some with --namespace dynamo" in got.output
        async with program([*SET, "disagg_policy=none"], environ) as refused:
            assert await refused.exit_code(END_S) == 1
        assert refused.output.count("'none' is not one of length, prefill-load, either") == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["get", "a=b"], "get shows all settings, it takes no 'a=b'"),
        (["set"], "set needs NAME=VALUE"),
        (["set", "a"], "NAME=VALUE, not 'a'"),
        (["put"], "invalid choice"),
        ([], "error: the following arguments are required: action\n"),
        (["set", "--disagg-policy=length"], "write disagg-policy=length, without --"),
        (["set", "--disagg-policy", "length"], "write disagg-policy=VALUE, without --"),
        (["get", "--no-such-flag"], "unrecognized arguments: --no-such-flag\n"),
    ],
)
def test_wrong_command_line(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["config", *arguments])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_help_names_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["config", "--help"])
    shown = capsys.readouterr().out
    assert "settings:\n  conditional-disagg=true|false\n  disagg-policy=length|prefill-load|either\n" in shown
    assert "\n  max-local-prefill-ratio=SHARE\n" in shown


def test_nobody_there(discovery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--file-kv", str(discovery), "get"]) == 1
    assert "no frontend in namespace 'dynamo'" in capsys.readouterr().err
