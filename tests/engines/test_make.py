"""Engines by name."""

import importlib.util
from pathlib import Path

import pytest

from dynamo.engines.echo import EchoEngine
from dynamo.engines.make import ENGINES, check_engine, make_engine
from dynamo.engines.mocker.engine import MockerEngine
from dynamo.errors import ConfigError
from dynamo.testing.tiny_model import byte_level_files


@pytest.fixture
def model(tmp_path: Path) -> str:
    for name, content in byte_level_files().items():
        (tmp_path / name).write_bytes(content)
    return str(tmp_path)


def test_mocker(model: str) -> None:
    assert isinstance(make_engine("mocker", model, ["--max-model-len", "64"]), MockerEngine)


def test_echo(model: str) -> None:
    assert isinstance(make_engine("echo", model), EchoEngine)


def test_wrong_flag(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_engine("echo", model, ["--no-such-flag"])
    assert ended.value.code == 2
    assert "--no-such-flag" in capsys.readouterr().err


def test_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ENGINES:
        if name == "vllm":
            with pytest.raises(ConfigError, match="vLLM is not installed"):
                check_engine(name)
        else:
            check_engine(name)
