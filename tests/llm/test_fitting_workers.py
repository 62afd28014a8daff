"""Who fits, as discovery changes. What routers make of it: test_kv_router.py."""

from collections.abc import AsyncIterator

import pytest

from dynamo.llm.fitting_workers import FittingWorkers
from dynamo.llm.register import ModelEntry
from dynamo.protocols.model_card import ModelCard, ModelInput, RuntimeLimits
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.discovery.base import Registration
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted, answers

ENDPOINT = "test.backend.generate"


@pytest.fixture
async def runtime() -> AsyncIterator[DistributedRuntime]:
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    yield runtime
    await within(runtime.close())


async def test_told_at_first_and_at_each_change(runtime: DistributedRuntime) -> None:
    endpoint, told = runtime.endpoint(ENDPOINT), list[dict[int, RuntimeLimits]]()
    client = await endpoint.client()
    workers = FittingWorkers(
        endpoint, client, lambda limits: told.append(dict(limits)), block_size=4, model="m", content_hash="h"
    )
    workers.refresh()
    workers.refresh()
    assert told == [{}]  # even that there is nobody

    await endpoint.start(Scripted[object, object](answers()))
    limits = RuntimeLimits(kv_block_size=4, max_num_seqs=7)
    card = ModelCard(name="m", model_type=1, model_input=ModelInput.Tokens, content_hash="h", limits=limits)
    entry = ModelEntry(instance_id=runtime.instance_id, endpoint=endpoint.id, card=card)
    registration = await runtime.register(entry.key, entry.encode())
    await eventually(lambda: told[-1] == {runtime.instance_id: limits})
    assert runtime.instance_id in workers
    await registration.withdraw()
    await eventually(lambda: told[-1] == {})
    assert runtime.instance_id not in workers
    await within(workers.close())


async def test_outlived_when_only_others_of_the_model_are_left(runtime: DistributedRuntime) -> None:
    endpoint = runtime.endpoint(ENDPOINT)
    await endpoint.start(Scripted[object, object](answers()))
    client = await endpoint.client()
    workers = FittingWorkers(endpoint, client, lambda _: None, block_size=4, model="m", content_hash="h")

    async def announce(name: str, block_size: int | None, content_hash: str = "h") -> Registration:
        limits = RuntimeLimits(kv_block_size=block_size)
        card = ModelCard(
            name=name, model_type=1, model_input=ModelInput.Tokens, content_hash=content_hash, limits=limits
        )
        entry = ModelEntry(instance_id=runtime.instance_id, endpoint=endpoint.id, card=card)
        return await runtime.register(entry.key, entry.encode())

    workers.refresh()
    assert not workers.outlived
    for name, block_size, content_hash, outlived in [
        ("m", 4, "h", False),
        ("other", 8, "h", False),
        ("m", None, "h", False),
        ("m", 8, "h", True),
        ("m", 4, "i", True),
    ]:
        registration = await announce(name, block_size, content_hash)
        await eventually(lambda: len(workers._announced) == 1)
        workers.refresh()
        assert workers.outlived == outlived
        await registration.withdraw()
        await eventually(lambda: not workers._announced)
    await within(workers.close())
