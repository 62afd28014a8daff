"""Making a model card out of a model directory."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from dynamo.errors import ConfigError
from dynamo.protocols.model_card import (
    Artifact,
    EngineFeature,
    ModelCard,
    ModelInput,
    ModelType,
    RuntimeLimits,
    WorkerType,
)

# What a frontend needs to turn text into tokens and back.
ARTIFACT_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
)
_CONTEXT_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


def default_name(model_path: str | Path) -> str:
    """What a model is called that is given no name: the last part of its path or hub name."""
    return os.path.basename(os.path.abspath(model_path))


def artifact_paths(model_dir: Path) -> dict[str, Path]:
    """The files of a model directory that a frontend needs, by name."""
    return {name: model_dir / name for name in ARTIFACT_NAMES if (model_dir / name).is_file()}


def describe(path: Path, name: str) -> Artifact:
    content = path.read_bytes()
    return Artifact(name=name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def build_card(
    *,
    name: str,
    model_type: ModelType,
    model_input: ModelInput,
    artifacts: Iterable[Artifact] = (),
    worker_type: WorkerType = WorkerType.Aggregated,
    handoff_format: str = "",
    context_length: int | None = None,
    features: Iterable[EngineFeature] = (),
    limits: RuntimeLimits | None = None,
) -> ModelCard:
    """A card with its content hash: workers whose hashes differ do not serve the same model."""
    card = ModelCard(
        name=name,
        model_type=model_type.value,
        model_input=model_input,
        worker_type=worker_type,
        handoff_format=handoff_format,
        context_length=context_length,
        created_s=int(time.time()),
        artifacts=sorted(artifacts, key=lambda artifact: artifact.name),
        features=sorted(features),
        limits=limits or RuntimeLimits(),
    )
    identity = (name, model_type.value, model_input, context_length, card.features, card.artifacts)
    card.content_hash = hashlib.sha256(msgspec.json.encode(identity)).hexdigest()
    return card


def model_context_length(model_dir: Path) -> int | None:
    """What config.json says; None when it does not. Raises ConfigError when it is no JSON object."""
    path = model_dir / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} is not a JSON object")
    text_config = config.get("text_config")  # of a model that takes images too
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        for key in _CONTEXT_LENGTH_KEYS:
            length = part.get(key)
            if type(length) is int and length > 0:
                return length
    return None
