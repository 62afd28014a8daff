import subprocess
import sys
from pathlib import Path

import pytest

from dynamo.errors import ConfigError
from dynamo.llm import model_hub
from dynamo.llm.model_source import resolve_model
from dynamo.llm.progress import SilentProgress


def resolve(name: str, *, weights: bool = False) -> Path:
    return resolve_model(name, weights=weights, progress=SilentProgress())


def test_directory_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model") == tmp_path / "org" / "model"
    assert resolve(str(tmp_path / "org" / "model")) == tmp_path / "org" / "model"


def test_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["gpt2", "./here", "../org/model", "/no/such/dir", "a/b/c", "org/mo del", "~/nowhere"])
def test_other_names_are_explained(name: str) -> None:
    with pytest.raises(ConfigError, match="give smollm2, an existing directory, or a hub name"):
        resolve(name)


@pytest.mark.parametrize(("weights", "fetched"), [(False, False), (True, True)])
def test_hub_is_asked_for_weights_only_if_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bool, fetched: bool
) -> None:
    def snapshot_download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert name == "org/model"
        (tmp_path / "config.json").write_text("{}")
        if "*.safetensors" in allow_patterns:
            (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr(model_hub, "snapshot_download", snapshot_download)
    assert resolve("org/model", weights=weights) == tmp_path
    assert (tmp_path / "model.safetensors").exists() == fetched


def test_hub_model_without_safetensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_hub, "snapshot_download", lambda name, **patterns: str(tmp_path))
    with pytest.raises(ConfigError, match="no safetensors weights"):
        resolve("org/model", weights=True)


def test_unreachable_hub_is_explained(tmp_path: Path) -> None:
    script = f"from {resolve_model.__module__} import resolve_model; resolve_model('org/model', weights=False)"
    # The hub client reads its environment once, at import. Nothing listens on port 9 of loopback.
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    last_error = done.stderr[done.stderr.index("dynamo.errors.ConfigError") :]
    assert "cannot fetch org/model" in last_error
    assert "Check the name and the network" in last_error


def test_no_heavy_package_is_imported_before_it_is_needed() -> None:
    script = f"import sys, {resolve_model.__module__}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "transformers", "vllm", "gguf", "numpy", "huggingface_hub"} & set(done.stdout.split())
