"""Announcing a model."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo.errors import ConfigError
from dynamo.llm.artifacts import ArtifactRequest
from dynamo.llm.register import MODELS_PREFIX, ModelEntry, models_prefix, register_llm, register_model
from dynamo.protocols.model_card import EngineFeature, ModelCard, ModelInput, ModelType, RuntimeLimits, WorkerType
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.component import Endpoint
from dynamo.runtime.discovery.base import Put
from dynamo.runtime.instance import EndpointId
from dynamo.testing import within
from dynamo.testing.tiny_model import byte_level_files

BOTH = ModelType.Chat | ModelType.Completions


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "tiny"
    directory.mkdir()
    for name, content in byte_level_files().items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    yield runtime.endpoint("ns.backend.generate")
    await runtime.close()


async def entry_of(endpoint: Endpoint) -> ModelEntry:
    event = await within(anext(endpoint.runtime.discovery.watch(MODELS_PREFIX)))
    assert isinstance(event, Put)
    entry = ModelEntry.decode(event.value)
    assert event.key == entry.key
    return entry


async def test_entry(endpoint: Endpoint, model: Path) -> None:
    before_ms = time.time_ns() // 1_000_000
    card = await register_model(ModelInput.Tokens, BOTH, endpoint, model)
    entry = await entry_of(endpoint)
    assert entry.card == card
    assert entry.endpoint == endpoint.id
    assert entry.instance_id == endpoint.connection_id()
    assert before_ms <= entry.announced_ms <= time.time_ns() // 1_000_000
    assert entry.key.startswith("models/ns/ns.backend.generate/")
    assert card.name == "tiny"
    assert {artifact.name for artifact in card.artifacts} == byte_level_files().keys()
    assert card.model_type == BOTH.value
    assert card.worker_type is WorkerType.Aggregated


async def test_options(endpoint: Endpoint, model: Path) -> None:
    card = await register_llm(
        ModelInput.Tokens,
        ModelType.Chat,
        endpoint,
        str(model),
        "org/mine",
        context_length=55,
        kv_cache_block_size=32,
        runtime_config=RuntimeLimits(max_num_seqs=7),
        features=[EngineFeature.LOGPROBS],
        worker_type=WorkerType.Decode,
    )
    assert (card.name, card.context_length, card.worker_type) == ("org/mine", 55, WorkerType.Decode)
    assert card.limits == RuntimeLimits(max_num_seqs=7, kv_block_size=32)
    assert card.features == [EngineFeature.LOGPROBS]


async def test_files_are_served(endpoint: Endpoint, model: Path) -> None:
    card = await register_model(ModelInput.Tokens, BOTH, endpoint, model)
    entry = await entry_of(endpoint)
    client = endpoint.runtime.client(entry.files_endpoint)
    for artifact in card.artifacts:
        stream = await client.direct(ArtifactRequest(artifact.sha256), entry.instance_id, annotated=False)
        assert b"".join([chunk async for chunk in stream]) == (model / artifact.name).read_bytes()


async def test_chat_template_of_ones_own(endpoint: Endpoint, model: Path, tmp_path: Path) -> None:
    template = tmp_path / "my.jinja"
    template.write_text("mine")
    card = await register_model(ModelInput.Tokens, BOTH, endpoint, model, custom_template_path=template)
    (found,) = [artifact for artifact in card.artifacts if artifact.name == "chat_template.jinja"]
    assert found.size_bytes == 4


async def test_context_length_of_the_model(endpoint: Endpoint, model: Path) -> None:
    (model / "config.json").write_text('{"max_position_embeddings": 321}')
    assert (await register_model(ModelInput.Tokens, BOTH, endpoint, model)).context_length == 321


async def test_text_needs_no_directory(endpoint: Endpoint) -> None:
    card = await register_model(ModelInput.Text, ModelType.Chat, endpoint, "org/some-api")
    assert (card.name, card.artifacts, card.context_length) == ("some-api", [], None)


async def test_several_models_at_one_endpoint(endpoint: Endpoint, model: Path) -> None:
    names = ["a", "b", "a/b", "ü %/.."]
    cards = [await register_model(ModelInput.Tokens, BOTH, endpoint, model, name) for name in names]
    watch = endpoint.runtime.discovery.watch(models_prefix("ns"))
    entries = [ModelEntry.decode((await within(anext(watch))).value) for _ in names]  # type: ignore[union-attr]
    assert {entry.card.name for entry in entries} == set(names)
    assert len({entry.key for entry in entries}) == len({entry.files_endpoint for entry in entries}) == len(cards)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"model_path": "/proc/nowhere"}, "no model"),
        ({"model_path": "/proc"}, "not a model directory"),
        ({"custom_template_path": "/proc/nowhere"}, "no chat template"),
    ],
)
async def test_what_cannot_be_announced(
    endpoint: Endpoint, model: Path, arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        await register_model(ModelInput.Tokens, BOTH, endpoint, **{"model_path": model} | arguments)
    assert list(endpoint.runtime.discovery.watch("").take()) == []


async def test_no_tokenizer(endpoint: Endpoint, model: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        await register_model(ModelInput.Tokens, BOTH, endpoint, model)
    assert (await register_model(ModelInput.Text, BOTH, endpoint, model)).artifacts


def test_entry_of_another_version_can_be_read() -> None:
    card = ModelCard(name="m", model_type=1, model_input=ModelInput.Text)
    entry = ModelEntry(instance_id=1, endpoint=EndpointId.parse("a.b.c"), card=card)
    older = entry.encode().replace(b',"announced_ms":0', b"")
    newer = entry.encode()[:-1] + b',"unknown":1}'
    assert ModelEntry.decode(older) == ModelEntry.decode(newer) == entry


@pytest.mark.parametrize(
    "limits", [RuntimeLimits(kv_block_size=0), RuntimeLimits(kv_block_size=-16), RuntimeLimits(data_parallel_size=0)]
)
def test_entry_of_an_engine_that_cannot_be(limits: RuntimeLimits) -> None:
    card = ModelCard(name="m", model_type=1, model_input=ModelInput.Tokens, limits=limits)
    entry = ModelEntry(instance_id=1, endpoint=EndpointId.parse("a.b.c"), card=card)
    with pytest.raises(msgspec.DecodeError, match="limits"):
        ModelEntry.decode(entry.encode())


def test_models_prefix() -> None:
    assert models_prefix(None) == "models/"
    assert models_prefix("ns") == "models/ns/"
