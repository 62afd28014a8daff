"""The same with tiers below the device, whose copies take time: nobody notices but by what need not be computed."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from dynamo.engines.mocker.cache_events import CacheEvents
from dynamo.engines.mocker.scheduler import Scheduler, StepResult
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.engines.mocker.tiers_config import TiersConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.kvbm.block import BlockState
from dynamo.kvbm.manager import ManagerConfig
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import Tier
from dynamo.protocols.kvbm import StorageTier
from dynamo.router.radix_tree import RadixTree
from tests.engines.mocker.test_scheduler_properties import (
    BLOCK_SIZE,
    SAMPLER,
    STEPS_MAX,
    SchedulerMachine,
    StoredBlocks,
    alone,
    configs,
)

WORKER = WorkerId(1)
COPIES = TransferModel(bandwidth_gb_s=1.0, bytes_per_token=250_000, latency_ms=0.1)  # a block in 1 ms
AT_ONCE = TransferModel(bandwidth_gb_s=0)

tiers = st.builds(
    lambda host_blocks, disk_blocks, policy, disk_filter, host, disk, wait_s: TiersConfig(
        manager=ManagerConfig(slot_bytes=4096, policy=policy, disk_filter=disk_filter, onboard_timeout_s=wait_s),
        host_blocks=host_blocks,
        disk_blocks=disk_blocks,
        host=host,
        disk=disk,
    ),
    host_blocks=st.integers(1, 40),
    disk_blocks=st.just(0) | st.integers(1, 60),
    policy=st.sampled_from(["lru", "tinylfu"]),
    disk_filter=st.sampled_from(["frequency", "none"]),
    host=st.sampled_from([COPIES, AT_ONCE]),
    disk=st.sampled_from([COPIES, AT_ONCE]),
    wait_s=st.sampled_from([0.0, 0.002, 1.0]),
)


class Told(StoredBlocks):
    """Remembers what the device holds, and keeps what is told of the tiers as a router does."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree()
        self._events = CacheEvents()

    def tier_changed(self, tier: Tier, stored: Sequence[int], removed: Sequence[int]) -> None:
        self._events.tier_changed(tier, stored, removed)

    def held(self, tier: Tier) -> set[int]:
        for event in self._events.take():
            self.tree.apply(WORKER, event)
        return set(self.tree.held(WORKER, tier))


class TiersMachine(SchedulerMachine):
    @initialize(config=configs, tiers=tiers)
    def begin(self, config: SchedulerConfig, tiers: TiersConfig) -> None:
        self.stored = self.told = Told()
        self.now_s = 0.0
        self.scheduler = Scheduler(config, TimingModel(), SAMPLER, self.stored, tiers)
        assert self.scheduler.tiers is not None
        self.tiers = self.scheduler.tiers
        self.tiers.observer = self.told

    @rule()
    def step(self) -> None:
        scheduler = self.scheduler
        scheduler.advance(self.now_s)
        had_work, before = scheduler.has_work, list(scheduler._waiting)
        result = self.checked_step()
        did_something = bool(result.outputs or result.new_tokens or list(scheduler._waiting) != before)
        assert had_work or not did_something, "has_work said that there was nothing to do"
        self.pass_time(result.duration_s)

    def checked_step(self) -> StepResult:
        result = super().checked_step()
        for sequence, output in result.outputs.items():
            if output.cached_tokens is not None:
                assert output.cached_tokens % BLOCK_SIZE == 0
                assert output.cached_tokens < len(self.requests[sequence].token_ids) + len(self.outputs[sequence])
        return result

    @rule(seconds=st.sampled_from([0.0001, 0.001, 0.01]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.scheduler.advance(self.now_s)

    @invariant()
    def nobody_overtakes(self) -> None:
        """Not so here: who waits for a tier is overtaken. But nobody is in two places."""
        holders = self.holders()
        assert len(holders) == len(set(holders))
        assert len(holders) <= self.scheduler.config.max_num_seqs
        load = self.scheduler.load()
        unfinished = sum(not self.ended(sequence) for sequence in self.requests)
        assert load.running_requests + load.waiting_requests == unfinished

    @invariant()
    def who_waits_is_known_to_the_tiers(self) -> None:
        assert self.tiers.waiting == len(self.scheduler._onboarding)
        if self.scheduler._onboarding:
            assert self.scheduler.next_s is not None

    @invariant()
    def routers_know_what_the_tiers_hold(self) -> None:
        for storage, tier in ((StorageTier.HOST, Tier.HOST), (StorageTier.DISK, Tier.DISK)):
            held = {block.name for block in self.tiers.manager.snapshot(storage)}
            assert self.told.held(tier) == held
            assert self.scheduler.config.enable_prefix_caching or not held

    def teardown(self) -> None:
        """What has to come from below has come after a while, and everybody gets to the end."""
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        for _ in range(STEPS_MAX):
            next_s = scheduler.next_s
            if scheduler.has_work:
                self.step()
            elif next_s is not None:
                self.pass_time(max(0.0, next_s - self.now_s))
            else:
                break
            self.no_block_is_lost()
        assert not scheduler.has_work, "some sequence never ended"
        assert scheduler.next_s is None, "the tiers never come to rest"
        assert scheduler.load().waiting_requests == scheduler.pool.used == self.tiers.waiting == 0
        for sequence, request in self.requests.items():
            assert self.said(sequence) == alone(request, scheduler.config.context_length)
        manager = self.tiers.manager
        manager.detach(0)
        assert {(block.state, block.pins) for block in manager._pool.blocks} <= {
            (BlockState.RESET, 0),
            (BlockState.REGISTERED, 0),
        }

    def holders(self) -> list[SequenceState]:
        scheduler = self.scheduler
        return [*super().holders(), *scheduler._onboarding, *scheduler._onboarded]


TestTiersMachine = TiersMachine.TestCase
TestTiersMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
