"""Which models are routed by their KV cache, and what becomes of their metrics."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dynamo.errors import InvalidRequestError
from dynamo.llm.artifacts import ArtifactCache
from dynamo.llm.model_manager import ModelManager
from dynamo.llm.register import ModelEntry
from dynamo.llm.routing_setup import RoutingSetup
from dynamo.protocols.model_card import ModelCard, ModelInput, RuntimeLimits, WorkerType
from dynamo.router.config import KvRouterConfig
from dynamo.router.kv_placer import KvPlacer
from dynamo.router.placement import SelectorPlacer
from dynamo.router.selection import RouterMode
from dynamo.runtime.instance import EndpointId
from dynamo.telemetry.router_metrics import RouterMetrics
from dynamo.testing import eventually

from .deployed import Deployed, until_models


def entry(block_size: int | None, model_input: ModelInput = ModelInput.Tokens) -> ModelEntry:
    limits = RuntimeLimits(kv_block_size=block_size)
    card = ModelCard(name="m", model_type=1, model_input=model_input, limits=limits)
    return ModelEntry(instance_id=1, endpoint=EndpointId("test", "backend", "generate"), card=card)


@pytest.mark.parametrize("mode", list(RouterMode))
async def test_blocks_are_looked_at_in_kv_mode_alone(fleet: Deployed, mode: RouterMode) -> None:
    placer = RoutingSetup(mode=mode).placer(entry(16), fleet.runtime)
    assert isinstance(placer, KvPlacer) == (mode is RouterMode.KV)
    if isinstance(placer, KvPlacer):
        assert placer.scheduler.block_size == 16
        await placer.close()


@pytest.mark.parametrize(("block_size", "model_input"), [(None, ModelInput.Tokens), (16, ModelInput.Text)])
async def test_models_without_blocks_go_by_load(
    fleet: Deployed, block_size: int | None, model_input: ModelInput, caplog: pytest.LogCaptureFixture
) -> None:
    placer = RoutingSetup(mode=RouterMode.KV).placer(entry(block_size, model_input), fleet.runtime)
    assert isinstance(placer, SelectorPlacer)
    assert "'m' has no KV blocks that its workers tell of" in caplog.text


async def test_metrics_live_as_long_as_their_model(fleet: Deployed, tiny: Path) -> None:
    registry = CollectorRegistry()
    config = KvRouterConfig(router_replica_sync=True)
    routing = RoutingSetup(mode=RouterMode.KV, kv=config, metrics=RouterMetrics(registry))
    manager = ModelManager(fleet.runtime, namespace=None, routing=routing, cache=ArtifactCache(None))
    async with manager.following():
        for _ in range(3):  # each time its feed is served anew
            worker = await fleet.serve("m", tiny, kv_cache_block_size=16)
            await until_models(manager, {"m": 1})
            label = f'worker_id="{worker.instance_id}"'
            assert label in generate_latest(registry).decode()
            await worker.close()
            await eventually(lambda: not manager._slots)
            assert 'model="m"' not in generate_latest(registry).decode()


async def test_direct_mode_names_who_answers_and_not_who_prefills(fleet: Deployed) -> None:
    routing = RoutingSetup(mode=RouterMode.DIRECT)
    prefill = entry(16, ModelInput.Tokens)
    prefill.card.worker_type = WorkerType.Prefill
    chosen = routing.placer(prefill, fleet.runtime)
    assert isinstance(chosen, SelectorPlacer)
    chosen.check(None)
    with pytest.raises(InvalidRequestError):
        routing.placer(entry(16, ModelInput.Tokens), fleet.runtime).check(None)
