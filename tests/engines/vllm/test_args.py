import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo.engines.vllm.args import VllmConfig, parse_command_line
from dynamo.errors import ConfigError


def test_help_does_not_import_vllm() -> None:
    program = (
        "import sys\n"
        "from dynamo.engines.vllm.args import parse_command_line\n"
        "try: parse_command_line(['--help'])\n"
        "except SystemExit as end: print('code', end.code, 'vllm' in sys.modules, 'torch' in sys.modules)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)

    assert "--help-engine" in done.stdout
    assert "--served-model-name" in done.stdout
    assert done.stdout.endswith("code 0 False False\n")


def test_model_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_command_line([])

    assert end.value.code == 2
    assert "--model is missing" in capsys.readouterr().err


def test_nothing_is_fetched_for_a_vllm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("dynamo.engines.vllm.args.resolve_model", pytest.fail)

    with pytest.raises(ConfigError, match="vLLM is not installed"):
        parse_command_line(["--model", "smollm2"])


def test_a_model_that_is_not_there_is_noticed_before_vllm_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dynamo.engines.vllm.engine_config", None)  # importing it would fail

    with pytest.raises(ConfigError, match="nothing"):
        parse_command_line(["--model", str(tmp_path / "nothing")])


def test_model_name_is_that_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "my-model"
    directory.mkdir()

    assert VllmConfig(model=str(directory)).model_name() == "my-model"
    assert VllmConfig(model=f"{directory}/").model_name() == "my-model"
    monkeypatch.chdir(directory)
    assert VllmConfig(model=".").model_name() == "my-model"


def test_model_name_of_the_hub_stays_whole() -> None:
    assert VllmConfig(model="org/model").model_name() == "org/model"


def test_served_model_name_wins(tmp_path: Path) -> None:
    assert VllmConfig(model=str(tmp_path), served_model_name="m").model_name() == "m"
