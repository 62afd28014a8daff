"""What the device has given up comes back from the tiers below, in the time that this takes."""

from collections.abc import Callable

import msgspec
import pytest

from dynamo.engines.mocker.cache_events import CacheEvents
from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.scheduler import Scheduler
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.tiers_config import TiersConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.kvbm.manager import ManagerConfig
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.kv_events import BlockRemoved, BlockStored, Tier
from dynamo.protocols.kvbm import StorageTier
from dynamo.tokens import hashes_to_bytes, sequence_hashes, token_array

MakeRequest = Callable[..., PreprocessedRequest]

BLOCK_SIZE = 4
SAMPLER = Sampler(range(1000, 2000))
HOST_S, DISK_S = 0.001, 0.002  # a block's copy
HOST = TransferModel(bandwidth_gb_s=1.0, bytes_per_token=250_000, latency_ms=0)
DISK = TransferModel(bandwidth_gb_s=0.5, bytes_per_token=250_000, latency_ms=0)
TIMING = TimingModel(prefill_ms=(0, 1, 0), decode_ms=(0, 0, 1))


class Worker:
    """A scheduler with time."""

    def __init__(self, *, num_blocks: int = 8, host_blocks: int = 32, disk_blocks: int = 0) -> None:
        config = SchedulerConfig(
            block_size=BLOCK_SIZE, num_blocks=num_blocks, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=60
        )
        manager = ManagerConfig(slot_bytes=4096, policy="lru", disk_filter="none")
        tiers = TiersConfig(manager=manager, host_blocks=host_blocks, disk_blocks=disk_blocks, host=HOST, disk=DISK)
        self.events = CacheEvents()
        self.scheduler = Scheduler(config, TIMING, SAMPLER, tiers=tiers)
        self.scheduler.tell(self.events)
        self.now_s = 0.0

    def run(self, request: PreprocessedRequest) -> tuple[list[LLMEngineOutput], float]:
        """The outputs, and how long the first took."""
        sequence = self.scheduler.add(request)
        began_s, first_s = self.now_s, 0.0
        outputs: list[LLMEngineOutput] = []
        while not sequence.finished:
            self.go_on()
            if self.scheduler.has_work:
                step = self.scheduler.step()
                self.now_s += step.duration_s
                outputs += [output for who, output in step.outputs.items() if who is sequence]
                first_s = first_s or (self.now_s - began_s if outputs else 0.0)
        self.rest()
        return outputs, first_s

    def go_on(self) -> None:
        """As far as nothing happens without a step."""
        self.scheduler.advance(self.now_s)
        while not self.scheduler.has_work and (next_s := self.scheduler.next_s) is not None:
            self.now_s = max(self.now_s, next_s)
            self.scheduler.advance(self.now_s)

    def rest(self) -> None:
        self.go_on()
        assert self.scheduler.next_s is None


def cached(outputs: list[LLMEngineOutput]) -> int | None:
    return outputs[0].cached_tokens


def names_of(prompt: range) -> bytes:
    return hashes_to_bytes(sequence_hashes(token_array(prompt), BLOCK_SIZE))


def test_what_the_device_gave_up_comes_from_host_memory(request_of: MakeRequest) -> None:
    worker = Worker()
    first, _ = worker.run(request_of(range(24), max_tokens=2))
    worker.run(request_of(range(100, 129), max_tokens=2))  # takes all of the device
    again, first_token_s = worker.run(request_of(range(24), max_tokens=2))
    assert cached(first) == 0
    assert cached(again) == 20
    assert [output.token_ids for output in again] == [output.token_ids for output in first]
    assert first_token_s == pytest.approx(5 * HOST_S + 0.004), "five blocks copied, four tokens computed"
    assert worker.scheduler.reused_blocks == {Tier.DEVICE: 0, Tier.HOST: 5, Tier.DISK: 0}


def test_what_is_on_the_device_is_not_copied(request_of: MakeRequest) -> None:
    worker = Worker()
    worker.run(request_of(range(24), max_tokens=2))
    again, first_token_s = worker.run(request_of(range(24), max_tokens=2))
    assert cached(again) == 20
    assert first_token_s == pytest.approx(0.004)
    assert worker.scheduler.reused_blocks[Tier.HOST] == 0


def test_what_host_memory_gave_up_comes_from_the_disk(request_of: MakeRequest) -> None:
    worker = Worker(host_blocks=16, disk_blocks=100)
    first, _ = worker.run(request_of(range(24), max_tokens=2))
    for start in range(100, 900, 100):
        worker.run(request_of(range(start, start + 29), max_tokens=2))
    again, first_token_s = worker.run(request_of(range(24), max_tokens=2))
    assert cached(again) == 20
    assert [output.token_ids for output in again] == [output.token_ids for output in first]
    assert worker.scheduler.reused_blocks[Tier.DISK] > 0
    assert first_token_s > 5 * HOST_S + 0.004 + DISK_S


def test_routers_are_told_of_the_tiers(request_of: MakeRequest) -> None:
    worker = Worker()
    worker.run(request_of(range(9), max_tokens=1))
    names = names_of(range(8))
    assert worker.events.take() == [BlockStored(names), BlockStored(names, Tier.HOST)]
    worker.run(request_of(range(100, 129), max_tokens=1))
    others = names_of(range(100, 128))
    assert worker.events.take() == [
        BlockRemoved(names[8:] + names[:8]),  # of the device; the last one was let go first
        BlockStored(others),
        BlockStored(others, Tier.HOST),
    ]


@pytest.mark.parametrize("after_steps", [1, 2])
def test_aborted_while_its_blocks_come(request_of: MakeRequest, after_steps: int) -> None:
    worker = Worker()
    worker.run(request_of(range(24), max_tokens=2))
    worker.run(request_of(range(100, 129), max_tokens=2))
    sequence = worker.scheduler.add(request_of(range(24), max_tokens=2))
    worker.scheduler.step()
    assert worker.scheduler.pool.used == 6
    assert not worker.scheduler.has_work
    if after_steps == 2:
        worker.go_on()  # they have come
        assert worker.scheduler.has_work
    worker.scheduler.abort(sequence)
    assert worker.scheduler.pool.used == 0
    worker.rest()
    assert not worker.scheduler.has_work
    outputs, _ = worker.run(request_of(range(24), max_tokens=2))
    assert cached(outputs) == 20


def test_others_go_on_meanwhile(request_of: MakeRequest) -> None:
    worker = Worker(num_blocks=12)
    worker.run(request_of(range(24), max_tokens=2))
    worker.run(request_of(range(100, 145), max_tokens=2))
    waiting = worker.scheduler.add(request_of(range(24), max_tokens=2))
    other = worker.scheduler.add(request_of(range(300, 304), max_tokens=2))
    worker.scheduler.advance(worker.now_s)
    assert list(worker.scheduler.step().outputs) == [other]
    load = worker.scheduler.load()
    assert (load.running_requests, load.waiting_requests) == (1, 1)
    worker.now_s += 1
    worker.scheduler.advance(worker.now_s)
    assert set(worker.scheduler.step().outputs) == {other, waiting}


def test_prefill_for_others_uses_the_tiers_too(request_of: MakeRequest) -> None:
    worker = Worker()
    worker.run(request_of(range(24), max_tokens=2))
    worker.run(request_of(range(100, 129), max_tokens=2))
    outputs, _ = worker.run(msgspec.structs.replace(request_of(range(24), max_tokens=2), prefill_only=True))
    assert cached(outputs) == 20


def test_figures(request_of: MakeRequest) -> None:
    worker = Worker()
    worker.run(request_of(range(24), max_tokens=2))
    worker.run(request_of(range(100, 129), max_tokens=2))
    worker.run(request_of(range(24), max_tokens=2))
    assert worker.scheduler.tiers is not None
    figures = worker.scheduler.tiers.figures(3)
    [host] = figures.tiers
    assert (host.tier, host.state, host.blocks) == (StorageTier.HOST, "ready", figures.offloaded_blocks)
    assert figures.onboarded_blocks == host.hits == 5
    assert figures.onboard_s == pytest.approx(5 * HOST_S)
    assert figures.dropped_offloads == 0
