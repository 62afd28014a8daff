"""Workers with tiers behind the real router: what it is told, and what it makes of it."""

import dataclasses
import random

import pytest

from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.tiers_config import SimulatedTierOptions
from dynamo.engines.mocker.timing import TimingModel
from dynamo.errors import ConfigError
from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEventBatch, Tier
from dynamo.router.config import KvRouterConfig
from dynamo.router.routing import RoutingRequest, WorkerLimits
from dynamo.simulator.cluster import Cluster
from dynamo.simulator.config import SimulationConfig
from dynamo.simulator.kv_core import KvCore
from dynamo.simulator.modes import SimulatedMode
from dynamo.simulator.simulation import simulate
from dynamo.simulator.trace import TraceRequest, longest_context
from dynamo.tokens import hashes_to_bytes, sequence_hashes, token_array

BLOCK_SIZE = 4
BLOCKS = 10
PROMPT = token_array(range(BLOCKS * BLOCK_SIZE + 1))
NAMES = hashes_to_bytes(sequence_hashes(PROMPT, BLOCK_SIZE))
DEVICE, HOST, DISK, EMPTY = range(4)


def router(*holders: int) -> KvCore:
    """Has heard that these workers, of four, have the prompt, each on the tier of its own number."""
    core = KvCore(KvRouterConfig(), BLOCK_SIZE, 4, WorkerLimits(max_num_batched_tokens=100), random.Random(0))
    for worker in holders:
        core.cache_changed(worker, KvEventBatch(0, [BlockStored(NAMES, Tier(worker))]))
    return core


def place(core: KvCore, request_id: int) -> int:
    core.submit(request_id, PROMPT, 0.0, prefilled=False)
    [placement] = core.take_placed()
    return placement.worker


@pytest.mark.parametrize(("holders", "chosen"), [((DEVICE, HOST, DISK), DEVICE), ((HOST, DISK), HOST), ((DISK,), DISK)])
def test_the_fastest_tier_wins(holders: tuple[int, ...], chosen: int) -> None:
    assert place(router(*holders), 0) == chosen


def test_credit_of_a_tier_is_a_share_of_the_devices() -> None:
    request = RoutingRequest(request_id="1", token_ids=PROMPT, explain=True)
    decision = router(DEVICE, HOST, DISK)._scheduler.submit(request, 0.0)
    assert decision is not None
    costs = {candidate.worker.instance_id: candidate.cost for candidate in decision.candidates}
    device = costs[EMPTY] - costs[DEVICE]
    assert device == KvRouterConfig().prefill_load_scale * KvRouterConfig().overlap_score_weight * BLOCKS
    assert costs[EMPTY] - costs[HOST] == 0.75 * device
    assert costs[EMPTY] - costs[DISK] == 0.25 * device


OPTIONS = SimulatedTierOptions(host_gb=100.0)
TIERS = OPTIONS.tiers(512, 131072)


def test_what_leaves_the_device_stays_known_in_host_memory() -> None:
    batches: list[KvEventBatch] = []

    class Listening(KvCore):
        def cache_changed(self, worker: int, batch: KvEventBatch) -> None:
            batches.append(batch)
            super().cache_changed(worker, batch)

    engine = SchedulerConfig(block_size=512, num_blocks=4, max_model_len=2048, max_num_batched_tokens=2048)
    core = Listening(KvRouterConfig(), 512, 1, WorkerLimits(max_num_batched_tokens=2048), random.Random(0))
    requests = [
        TraceRequest(arrival_s=float(at), prompt_tokens=1500, output_tokens=1, block_ids=ids)
        for at, ids in enumerate([(1, 2, 3), (4, 5, 6), (1, 2, 7)])
    ]
    record = Cluster(core, 1, engine, TimingModel(), tiers=TIERS).run(requests, [0.0, 1.0, 2.0])
    assert [request.cached_tokens for request in record.requests] == [0, 0, 1024]
    assert sum(record.reused_blocks[tier] for tier in (Tier.DEVICE, Tier.HOST)) == 2
    assert record.reused_blocks[Tier.HOST] >= 1
    events = [event for batch in batches for event in batch.events]
    kinds = {(type(event), event.tier) for event in events if not isinstance(event, AllBlocksCleared)}
    assert kinds == {(BlockStored, Tier.DEVICE), (BlockRemoved, Tier.DEVICE), (BlockStored, Tier.HOST)}


def test_more_tiers_find_more(mooncake: list[TraceRequest]) -> None:
    blocks = -(-longest_context(mooncake) // 512)
    config = SimulationConfig(workers=2, rate=3.0, num_gpu_blocks_override=blocks)
    none = simulate(config, SimulatedMode.KV, mooncake)
    host = simulate(dataclasses.replace(config, kvbm=SimulatedTierOptions(host_gb=20)), SimulatedMode.KV, mooncake)
    disk = simulate(
        dataclasses.replace(config, kvbm=SimulatedTierOptions(host_gb=20, disk_gb=200, disk_filter="none")),
        SimulatedMode.KV,
        mooncake,
    )
    assert none.hit_ratio < host.hit_ratio < disk.hit_ratio
    assert (none.host_blocks, none.disk_blocks, host.disk_blocks) == (0, 0, 0)
    assert min(host.host_blocks, disk.disk_blocks) > 0
    assert none.ttft_mean_s > host.ttft_mean_s


@pytest.mark.parametrize(
    "options",
    [{"host_gb": 1.0, "object_url": "s3://x/y"}, {"host_gb": 1.0, "peers": True}, {"disk_gb": 1.0}],
)
def test_tiers_that_cannot_be_simulated(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SimulatedTierOptions(**options)  # type: ignore[arg-type] # of each kind


def test_a_tier_too_small_for_a_block() -> None:
    with pytest.raises(ConfigError, match="no room for one block"):
        SimulatedTierOptions(host_gb=0.001).tiers(512, 131072)
