"""Model cards: what a directory says, and when two workers serve the same model."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from dynamo.errors import ConfigError
from dynamo.llm.model_card import artifact_paths, build_card, default_name, describe, model_context_length
from dynamo.protocols.model_card import Artifact, EngineFeature, ModelInput, ModelType, RuntimeLimits

FILES = [Artifact(name=name, sha256="a" * 64, size_bytes=1) for name in ("tokenizer.json", "config.json")]


def card_of(**different: Any) -> Any:
    arguments: dict[str, Any] = {
        "name": "m",
        "model_type": ModelType.Chat,
        "model_input": ModelInput.Tokens,
        "artifacts": FILES,
        "context_length": 100,
        "features": [EngineFeature.LOGPROBS],
    }
    return build_card(**arguments | different)


@pytest.mark.parametrize(
    "different",
    [
        {"name": "n"},
        {"model_type": ModelType.Chat | ModelType.Completions},
        {"model_input": ModelInput.Text},
        {"artifacts": FILES[:1]},
        {"artifacts": [FILES[0], Artifact(name="config.json", sha256="b" * 64, size_bytes=1)]},
        {"context_length": 101},
        {"context_length": None},
        {"features": []},
    ],
    ids=str,
)
def test_what_makes_another_model(different: dict[str, Any]) -> None:
    assert card_of(**different).content_hash != card_of().content_hash


@pytest.mark.parametrize(
    "same",
    [
        {"artifacts": FILES[::-1]},
        {"features": {EngineFeature.LOGPROBS}},
        {"limits": RuntimeLimits(max_num_seqs=5)},  # a smaller machine serves the same model
    ],
    ids=str,
)
def test_what_does_not(same: dict[str, Any]) -> None:
    assert card_of(**same).content_hash == card_of().content_hash


def test_hash_does_not_depend_on_when_the_card_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    before = card_of()
    monkeypatch.setattr("time.time", lambda: 5.0)
    after = card_of()
    assert (before.created_s != after.created_s, before.content_hash) == (True, after.content_hash)


def test_describe(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert describe(path, "tokenizer.json") == Artifact(
        name="tokenizer.json", sha256=hashlib.sha256(b"content").hexdigest(), size_bytes=7
    )


def test_artifact_paths(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json", "model.safetensors", "README.md"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "generation_config.json").mkdir()
    assert artifact_paths(tmp_path) == {name: tmp_path / name for name in ("tokenizer.json", "config.json")}
    assert artifact_paths(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": 10, "text_config": {"max_position_embeddings": 20}}, 10),
        ({"max_position_embeddings": None, "seq_length": 7}, 7),
        ({"max_position_embeddings": "many"}, None),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": 0}, None),
        ({"text_config": "none"}, None),
        ({"text_config": None}, None),
        ({}, None),
    ],
    ids=str,
)
def test_context_length(tmp_path: Path, config: dict[str, Any], length: int | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_context_length(tmp_path) == length


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null"])
def test_unusable_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is not"):
        model_context_length(tmp_path)


def test_no_config(tmp_path: Path) -> None:
    assert model_context_length(tmp_path) is None


@pytest.mark.parametrize(
    ("path", "name"), [("a", "a"), ("/x/a", "a"), ("/x/a/", "a"), ("org/a", "a"), (Path("x/a"), "a"), ("x/../a", "a")]
)
def test_default_name(path: str | Path, name: str) -> None:
    assert default_name(path) == name


def test_default_name_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my-model" / "inner")
    assert (default_name("."), default_name("..")) == ("inner", "my-model")
