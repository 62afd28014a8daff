"""One model as a frontend serves it."""

from pathlib import Path

import msgspec
import pytest

from dynamo.errors import ConfigError, ProtocolError
from dynamo.llm import served_model
from dynamo.llm.artifacts import ArtifactCache
from dynamo.llm.register import MODELS_PREFIX, ModelEntry
from dynamo.llm.routing_setup import RoutingSetup
from dynamo.llm.sequence import TextOutput
from dynamo.llm.served_model import ServedModel
from dynamo.protocols.openai import decode_completion
from dynamo.runtime import Context
from dynamo.runtime.discovery.base import Put
from dynamo.runtime.stage import Deliver
from dynamo.testing import eventually, within
from dynamo.testing.stages import outputs_of

from .deployed import Deployed


async def entry(fleet: Deployed) -> ModelEntry:
    event = await within(anext(fleet.runtime.discovery.watch(MODELS_PREFIX)))
    assert isinstance(event, Put)
    return ModelEntry.decode(event.value)


async def make(fleet: Deployed, announced: ModelEntry) -> ServedModel:
    return await within(ServedModel.make(announced, fleet.runtime, RoutingSetup(), ArtifactCache(None)))


async def test_answers(fleet: Deployed, tiny: Path) -> None:
    worker = await fleet.serve("m", tiny)
    model = await make(fleet, await entry(fleet))
    await eventually(lambda: model.ready)
    assert [instance.instance_id for instance in model.instances()] == [worker.instance_id]
    body = b'{"model": "m", "prompt": "Hello"}'

    async def complete(body: bytes, context: Context, deliver: Deliver[TextOutput]) -> None:
        await model.pipeline.completion(decode_completion(body), body, context, deliver)

    outputs = await outputs_of(complete, body)
    assert outputs[-1].finish_reason == "stop"
    assert outputs[0].worker_id is not None
    assert outputs[0].worker_id.instance_id == worker.instance_id
    await model.close()


async def test_members(fleet: Deployed, tiny: Path) -> None:
    first = await fleet.serve("m", tiny)
    announced = await entry(fleet)
    model = await make(fleet, announced)
    second = await fleet.serve("other", tiny)  # at the same endpoint
    await eventually(lambda: len(model._workers._client.instance_ids()) == 2)
    assert [i.instance_id for i in model.instances()] == [first.instance_id]
    model.set_members([msgspec.structs.replace(announced, instance_id=second.instance_id)])
    assert [i.instance_id for i in model.instances()] == [second.instance_id]
    model.set_members([])
    assert not model.ready
    assert model.instances() == []
    await model.close()


async def test_files_that_are_not_what_the_card_says(fleet: Deployed, tiny: Path) -> None:
    await fleet.serve("m", tiny)
    (tiny / "tokenizer.json").write_text("{}")
    with pytest.raises(ProtocolError):
        await make(fleet, await entry(fleet))
    assert len(fleet.runtime._clients) == 0  # nothing is left open


async def test_unusable_files(fleet: Deployed, tiny: Path) -> None:
    (tiny / "tokenizer.json").write_text("{}")
    await fleet.serve("m", tiny)
    with pytest.raises(ConfigError):
        await make(fleet, await entry(fleet))
    assert len(fleet.runtime._clients) == 0


async def test_worker_that_is_gone(fleet: Deployed, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_model, "_FILES_TIMEOUT_S", 0.01)
    worker = await fleet.serve("m", tiny)
    announced = await entry(fleet)
    await worker.close()
    with pytest.raises(TimeoutError):
        await make(fleet, announced)
    assert len(fleet.runtime._clients) == 0
