"""What rules the block manager out and shows in the engine's process only reaches the user as what it is."""

import os
from pathlib import Path
from unittest import mock

import pytest

from dynamo.engines.vllm.args import parse_command_line
from dynamo.errors import ConfigError, InternalError

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


async def test_an_engine_that_refuses_says_why(smollm2_dir: Path, tmp_path: Path) -> None:
    """As it is where vLLM starts an engine in another process: what is raised here is not what was raised there."""
    flags = ["--model", str(smollm2_dir), "--kvbm-host-gb", "0.1", "--kvbm-socket", str(tmp_path / "s")]
    with mock.patch.dict(os.environ):  # vLLM writes to it
        _, config = parse_command_line(flags)
    from dynamo.engines.vllm.engine import VllmEngine
    from dynamo.engines.vllm.kvbm_refusals import refusals_left
    from dynamo.engines.vllm.kvbm_settings import settings_of

    settings = settings_of(config.kv_transfer_config)
    assert settings is not None
    ended = RuntimeError("Engine core initialization failed")

    def refuses() -> None:
        with pytest.raises(ConfigError), refusals_left(settings):
            raise ConfigError("the block manager serves no such model")
        raise ended

    def fails() -> None:
        with pytest.raises(ValueError, match="no memory"), refusals_left(settings):
            raise ValueError("no memory")
        raise ended

    for build, error in (
        (refuses, ConfigError("the block manager serves no such model")),
        (fails, InternalError("vLLM did not start")),
    ):
        engine = VllmEngine(config)
        with mock.patch.object(engine._thread, "_build", build), pytest.raises(type(error), match=str(error)):
            await engine.start()
        await engine.cleanup()
    assert os.listdir(tmp_path) == []
