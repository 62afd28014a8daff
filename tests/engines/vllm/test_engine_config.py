"""vLLM's own flags, read by vLLM's own parser."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from dynamo.engines.vllm.args import parse_command_line

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # importing vLLM and torch warns a lot


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Reading its configuration, vLLM writes to the environment."""
    with mock.patch.dict(os.environ):
        yield


def test_defaults_for_the_cpu(smollm2_dir: Path) -> None:
    config, engine_config = parse_command_line(["--model", str(smollm2_dir)])

    assert (config.model_name(), config.model_path()) == (smollm2_dir.name, str(smollm2_dir))
    assert engine_config.cache_config.block_size == 32
    assert engine_config.cache_config.kv_cache_memory_bytes == 1 << 30
    assert engine_config.model_config.max_model_len == 2048
    assert engine_config.model_config.enforce_eager


def test_flags_are_passed_on_and_mix_with_ours(smollm2_dir: Path) -> None:
    argv = ["--max-model-len", "1k", "--model", str(smollm2_dir), "--block-size=64", "--served-model-name", "m"]

    config, engine_config = parse_command_line([*argv, "--max-num-seqs", "4", "--namespace", "n"])

    assert (config.model_name(), config.namespace) == ("m", "n")
    assert engine_config.model_config.served_model_name == "m"
    assert engine_config.model_config.max_model_len == 1000
    assert engine_config.cache_config.block_size == 64
    assert engine_config.scheduler_config.max_num_seqs == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--dtype", "int3"], "argument --dtype: invalid choice: 'int3'"),
        (["--max-model-len", "99999"], "max_model_len (99999) is greater than"),
        (["--max-num-seqs", "0"], "max_num_seqs: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_flags_are_usage_errors(
    flags: list[str], message: str, smollm2_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_command_line(["--model", str(smollm2_dir), *flags])

    error = capsys.readouterr().err
    assert end.value.code == 2
    assert message in error
    assert len(error.splitlines()) < 10  # vLLM has hundreds of flags: they do not belong here


def test_help_engine_lists_vllms_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_command_line(["--help-engine"])

    assert end.value.code == 0
    assert "--max-num-batched-tokens" in capsys.readouterr().out
