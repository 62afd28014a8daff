"""Announcing a model: `register_model` for anyone's engine."""

import hashlib
import logging
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from dynamo.errors import ConfigError
from dynamo.llm.artifacts import ArtifactRequest, ArtifactServer
from dynamo.llm.model_card import artifact_paths, build_card, default_name, describe, model_context_length
from dynamo.llm.model_source import resolve_model
from dynamo.protocols.model_card import (
    EngineFeature,
    ModelCard,
    ModelInput,
    ModelType,
    RuntimeLimits,
    WorkerType,
)
from dynamo.runtime.component import Endpoint, payload_handler
from dynamo.runtime.discovery.base import Event, Put
from dynamo.runtime.discovery.entry import decode_json, read_entry
from dynamo.runtime.instance import EndpointId, InstanceId

logger = logging.getLogger(__name__)

MODELS_PREFIX = "models/"
_TEMPLATE = "chat_template.jinja"


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A discovery entry: an instance serves a model."""

    instance_id: InstanceId
    endpoint: EndpointId
    card: ModelCard
    announced_ms: int = 0  # Unix time

    @property
    def key(self) -> str:
        return _entry_key(self.endpoint, self.instance_id, self.card.name)

    @property
    def files_endpoint(self) -> EndpointId:
        """Where the instance serves the card's files."""
        return self.endpoint.beside(f"{self.endpoint.name}_files_{_slug(self.card.name)}")

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> "ModelEntry":
        """Raises ValueError for an entry of another version."""
        return decode_json(value, cls)


def announced(event: Put) -> ModelEntry | None:
    """What a discovery entry announces; None for what is no announcement, which is logged."""
    try:
        return read_entry(event, ModelEntry)
    except ValueError as error:
        logger.warning("ignoring the discovery entry %s: %s", event.key, error)
        return None


def models_prefix(namespace: str | None) -> str:
    """Where the entries of a namespace (of all of them: None) stand."""
    return MODELS_PREFIX if namespace is None else f"{MODELS_PREFIX}{namespace}/"


def apply_announcement(entries: dict[str, ModelEntry], event: Event) -> None:
    """Has `entries`, by discovery key, follow an event under models_prefix(). What cannot be read changes nothing."""
    if not isinstance(event, Put):
        entries.pop(event.key, None)
    elif (entry := announced(event)) is not None:
        entries[event.key] = entry


async def register_model(
    model_input: ModelInput,
    model_type: ModelType,
    endpoint: Endpoint,
    model_path: str | Path,
    model_name: str | None = None,
    *,
    worker_type: WorkerType = WorkerType.Aggregated,
    handoff_format: str = "",
    context_length: int | None = None,
    kv_cache_block_size: int | None = None,
    runtime_config: RuntimeLimits | None = None,
    custom_template_path: str | Path | None = None,
    features: Iterable[EngineFeature] = (),
) -> ModelCard:
    """Announces that `endpoint` of this process serves a model.

    With ModelInput.Tokens the endpoint's handler gets PreprocessedRequest's fields (`token_ids` and so on) and yields
    LLMEngineOutput's (`{"token_ids": [...]}`, the last with a `finish_reason`); `model_path` (a directory or a hub
    name) gives the tokenizer and the chat template. With ModelInput.Text the handler gets the OpenAI request as a dict
    and yields OpenAI chunks; `model_path` is then only a name unless it is a directory. Frontends get the files from
    this process. `context_length` in tokens; by default what the model's config.json says.

    Raises ConfigError when the model cannot be read or announced.
    """
    paths = _artifact_paths(model_input, str(model_path), custom_template_path)
    limits = runtime_config or RuntimeLimits()
    if kv_cache_block_size is not None:
        limits = msgspec.structs.replace(limits, kv_block_size=kv_cache_block_size)
    if context_length is None and "config.json" in paths:
        context_length = model_context_length(paths["config.json"].parent)
    artifacts = {describe(path, name): path for name, path in paths.items()}
    card = build_card(
        name=model_name or default_name(model_path),
        model_type=model_type,
        model_input=model_input,
        artifacts=artifacts,
        worker_type=worker_type,
        handoff_format=handoff_format,
        context_length=context_length,
        features=features,
        limits=limits,
    )
    entry = ModelEntry(
        instance_id=endpoint.connection_id(), endpoint=endpoint.id, card=card, announced_ms=time.time_ns() // 1_000_000
    )
    if artifacts:
        files = payload_handler(ArtifactServer(artifacts).serve, ArtifactRequest)
        await endpoint.runtime.serve(entry.files_endpoint, files)
    await endpoint.runtime.register(entry.key, entry.encode())
    return card


async def unregister_model(endpoint: Endpoint, model_name: str) -> None:
    """Takes back what register_model() has announced under this name. Its files stay to be had."""
    await endpoint.runtime.unregister(_entry_key(endpoint.id, endpoint.connection_id(), model_name))


register_llm = register_model  # upstream's older name


def _entry_key(endpoint: EndpointId, instance_id: int, model_name: str) -> str:
    return f"{models_prefix(endpoint.namespace)}{endpoint}/{instance_id:x}/{_slug(model_name)}"


def _slug(model_name: str) -> str:
    return hashlib.sha256(model_name.encode()).hexdigest()[:16]  # a name may hold any character


def _artifact_paths(model_input: ModelInput, model_path: str, template: str | Path | None) -> dict[str, Path]:
    if model_input is ModelInput.Text and not Path(model_path).is_dir():
        return {}
    paths = artifact_paths(resolve_model(model_path, weights=False))
    if model_input is ModelInput.Tokens and "tokenizer.json" not in paths:
        raise ConfigError(f"{model_path} has no tokenizer.json")
    if template is not None:
        if not Path(template).is_file():
            raise ConfigError(f"there is no chat template at {template}")
        paths[_TEMPLATE] = Path(template)
    return paths
