"""The `dynamo` command itself."""

from importlib.metadata import version

import pytest

from dynamo.cli.main import main


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: dynamo COMMAND")
    assert "dynamo serve" in out
    assert "dynamo run" in out
    assert err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dynamo-py {version('dynamo-py')}\n"


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: dynamo COMMAND" in capsys.readouterr().err


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly", "--help"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "there is no command 'fly'" in err


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    assert "--router-mode" in capsys.readouterr().out
