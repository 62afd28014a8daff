"""Prefill and decode as the work of two schedulers: what is held, what is received."""

from collections.abc import Callable

import msgspec
import pytest

from dynamo.engines.mocker.block_pool import CacheObserver
from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.scheduler import Scheduler, StepResult
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.engines.mocker.timing import TimingModel
from dynamo.protocols.disagg import Handoff
from dynamo.protocols.generation import FinishReason, PreprocessedRequest
from dynamo.tokens import sequence_hashes, token_array

MakeRequest = Callable[..., PreprocessedRequest]

BLOCK_SIZE = 4
SAMPLER = Sampler(range(1000, 2000))
HANDOFF = Handoff(engine="mocker", params=b"")


class Names:
    """Remembers which blocks can be found."""

    def __init__(self) -> None:
        self.stored_hashes: list[int] = []

    def stored(self, sequence_hashes: object, parent: int | None) -> None:
        assert hasattr(sequence_hashes, "__iter__")
        self.stored_hashes += list(sequence_hashes)

    def removed(self, sequence_hashes: object) -> None: ...


def scheduler_of(
    *,
    num_blocks: int = 100,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 100,
    enable_prefix_caching: bool = True,
    enable_chunked_prefill: bool = True,
    observer: CacheObserver | None = None,
) -> Scheduler:
    config = SchedulerConfig(
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=100,
        enable_prefix_caching=enable_prefix_caching,
        enable_chunked_prefill=enable_chunked_prefill,
    )
    return Scheduler(config, TimingModel(), SAMPLER, observer)


def prefill(request: PreprocessedRequest) -> PreprocessedRequest:
    return msgspec.structs.replace(request, prefill_only=True)


def decode(request: PreprocessedRequest) -> PreprocessedRequest:
    return msgspec.structs.replace(request, handoff=HANDOFF)


def run(scheduler: Scheduler) -> dict[SequenceState, list[int]]:
    """Steps while there is work; what each has said."""
    said: dict[SequenceState, list[int]] = {}
    for _ in range(1000):
        if not scheduler.has_work:
            return said
        for sequence, output in scheduler.step().outputs.items():
            said.setdefault(sequence, []).extend(output.token_ids)
    raise AssertionError("not done after 1000 steps")


# Held


def test_a_prefill_ends_with_one_token_and_keeps_its_blocks(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    sequence = scheduler.add(prefill(request_of(range(10))))
    step = scheduler.step()

    assert step.new_tokens == 10
    assert step.outputs[sequence].finish_reason == FinishReason.LENGTH
    assert len(step.outputs[sequence].token_ids) == 1
    assert not scheduler.has_work
    assert (scheduler.held, scheduler.load().running_requests, scheduler.load().kv_used_blocks) == (1, 0, 3)

    scheduler.abort(sequence)  # has ended: only release() frees it
    assert scheduler.pool.used == 3
    for _ in range(2):
        scheduler.release(sequence)
        assert (scheduler.held, scheduler.pool.used, scheduler.pool.cached) == (0, 0, 2)


def test_neither_more_tokens_nor_a_stop_token_change_how_a_prefill_ends(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    (said,) = SAMPLER.script(request_of(range(10)), 10).tokens(0, 1)
    sequence = scheduler.add(prefill(request_of(range(10), max_tokens=50, stop_token_ids=(said,))))
    output = scheduler.step().outputs[sequence]

    assert (output.token_ids, output.finish_reason, output.stop_reason) == ([said], FinishReason.LENGTH, None)


def test_what_is_held_is_a_prefix_for_others(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    held = scheduler.add(prefill(request_of(range(10))))
    scheduler.step()
    other = scheduler.add(request_of(range(10), max_tokens=1))
    assert scheduler.step().outputs[other].cached_tokens == 8

    scheduler.release(held)
    assert scheduler.pool.used == 0


def test_what_is_held_can_leave_no_room(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(num_blocks=4)
    held = scheduler.add(prefill(request_of(range(10))))
    waiting = scheduler.add(request_of(range(100, 110), max_tokens=2))
    scheduler.step()
    scheduler.step()

    assert not scheduler.has_work, "it would spin for nothing"
    assert (scheduler.load().waiting_requests, scheduler.load().kv_used_blocks) == (1, 3)
    scheduler.release(held)
    assert len(run(scheduler)[waiting]) == 2


def test_an_abort_makes_room_for_who_comes_next(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(num_blocks=4)
    scheduler.add(prefill(request_of(range(10))))
    large = scheduler.add(request_of(range(100, 110), max_tokens=2))
    small = scheduler.add(request_of(range(4), max_tokens=1))
    scheduler.step()
    scheduler.step()
    scheduler.abort(large)

    assert len(run(scheduler)[small]) == 1


# Received


def test_a_decode_takes_its_blocks_and_waits_for_what_it_lacks(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    request = request_of(range(10), max_tokens=5)
    sequence = scheduler.add(decode(request))
    step = scheduler.step()

    assert step == StepResult(outputs={}, duration_s=0.0, new_tokens=0, receiving={sequence: 9})
    assert not scheduler.has_work
    load = scheduler.load()
    assert (load.running_requests, load.waiting_requests, load.kv_used_blocks) == (0, 1, 3)

    scheduler.received(sequence)
    first = scheduler.step()
    assert first.outputs[sequence].cached_tokens == 9
    assert sequence.transferred_tokens == 9
    assert first.new_tokens == 0
    assert first.duration_s == TimingModel().step_s(new_tokens=0, decoding=True, usage=0.03)
    said = first.outputs[sequence].token_ids + run(scheduler)[sequence]
    assert said == SAMPLER.script(request, 90).tokens(0, 5)
    assert scheduler.pool.used == 0


def test_what_is_in_the_cache_is_not_received(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(range(10), max_tokens=1))
    run(scheduler)
    sequence = scheduler.add(decode(request_of([*range(8), *range(50, 60)], max_tokens=5)))

    assert scheduler.step().receiving == {sequence: 9}
    scheduler.received(sequence)
    assert scheduler.step().outputs[sequence].cached_tokens == 17
    assert sequence.transferred_tokens == 9


def test_who_lacks_nothing_goes_on_at_once(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(range(9), max_tokens=1))
    run(scheduler)
    sequence = scheduler.add(decode(request_of(range(9), max_tokens=1)))

    assert scheduler.step().receiving == {sequence: 0}
    scheduler.received(sequence)  # says nothing new
    assert scheduler.step().outputs[sequence].cached_tokens == 8
    assert sequence.transferred_tokens == 0


def test_others_find_what_was_received(request_of: MakeRequest) -> None:
    names = Names()
    scheduler = scheduler_of(observer=names)
    first, second = (scheduler.add(decode(request_of(range(10), max_tokens=30))) for _ in range(2))
    assert scheduler.step().receiving == {first: 9, second: 9}
    assert names.stored_hashes == []

    scheduler.received(first)
    assert names.stored_hashes == list(sequence_hashes(token_array(range(10)), BLOCK_SIZE))
    assert scheduler.pool.used == 6
    scheduler.received(second)  # has the same, and gives its own back
    assert (len(names.stored_hashes), scheduler.pool.used) == (2, 4)


def test_who_receives_counts_as_running(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(max_num_seqs=2)
    one, two, three = (scheduler.add(decode(request_of([start, 1, 2], max_tokens=2))) for start in (7, 8, 9))

    assert scheduler.step().receiving == {one: 2, two: 2}
    scheduler.received(two)
    assert list(scheduler.step().outputs) == [two]
    step = scheduler.step()
    assert list(step.outputs) == [two]
    assert scheduler.step().receiving == {three: 2}


def test_who_waits_for_room_waits_for_who_receives(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(num_blocks=4)
    receiving = scheduler.add(decode(request_of(range(10), max_tokens=2)))
    waiting = scheduler.add(request_of(range(100, 110), max_tokens=2))
    scheduler.step()
    scheduler.step()

    assert not scheduler.has_work
    scheduler.received(receiving)
    assert {sequence: len(said) for sequence, said in run(scheduler).items()} == {receiving: 2, waiting: 2}


def test_a_transfer_needs_no_budget(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(max_num_batched_tokens=100, enable_chunked_prefill=False)
    local = scheduler.add(request_of(range(60), max_tokens=1))
    remote = scheduler.add(decode(request_of(range(100, 160), max_tokens=1)))
    step = scheduler.step()

    assert (list(step.outputs), step.receiving) == ([local], {remote: 59})


def test_who_has_received_joins_beside_a_long_prefill(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(max_num_batched_tokens=10)
    remote = scheduler.add(decode(request_of(range(10), max_tokens=5)))
    local = scheduler.add(request_of(range(100, 130), max_tokens=5))
    step = scheduler.step()
    assert (step.receiving, step.new_tokens) == ({remote: 9}, 10)

    scheduler.received(remote)
    steps = [scheduler.step() for _ in range(3)]
    assert [step.new_tokens for step in steps] == [9, 9, 2]
    assert [list(step.outputs) for step in steps] == [[remote], [remote], [remote, local]]


def test_who_gives_way_after_its_transfer_is_prefilled_here(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(num_blocks=8)
    requests = [request_of(range(start, start + 10), max_tokens=15) for start in (0, 100)]
    sequences = [scheduler.add(decode(request)) for request in requests]
    scheduler.step()
    for sequence in sequences:
        scheduler.received(sequence)
    outputs = run(scheduler)

    assert scheduler.preemptions > 0
    for request, sequence in zip(requests, sequences, strict=True):
        assert outputs[sequence] == SAMPLER.script(request, 90).tokens(0, 15)
    assert scheduler.pool.used == 0


def test_the_oldest_waits_for_what_cannot_give_way(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(num_blocks=6)
    old = scheduler.add(request_of(range(10), max_tokens=10))
    receiving = scheduler.add(decode(request_of(range(100, 110), max_tokens=1)))
    said = run(scheduler)

    assert scheduler.preemptions == 1
    assert 0 < len(said[old]) < 10
    scheduler.received(receiving)
    said[old] += run(scheduler)[old]
    assert len(said[old]) == 10


@pytest.mark.parametrize("state", ["waiting", "receiving", "arrived", "decoding"])
def test_a_decode_can_be_aborted_in_every_state(request_of: MakeRequest, state: str) -> None:
    scheduler = scheduler_of()
    sequence = scheduler.add(decode(request_of(range(10), max_tokens=9)))
    if state != "waiting":
        scheduler.step()
    if state in ("arrived", "decoding"):
        scheduler.received(sequence)
    if state == "decoding":
        scheduler.step()
    scheduler.abort(sequence)
    scheduler.received(sequence)

    assert not scheduler.has_work
    assert scheduler.pool.used == 0
    assert scheduler.load().waiting_requests == scheduler.load().running_requests == 0
