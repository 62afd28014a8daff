from collections.abc import Callable, Sequence

import pytest

from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.scheduler import Scheduler, StepResult
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.engines.mocker.timing import TimingModel
from dynamo.errors import ContextLengthExceededError, InvalidRequestError, OverloadedError
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest

MakeRequest = Callable[..., PreprocessedRequest]
Outputs = dict[SequenceState, list[LLMEngineOutput]]

BLOCK_SIZE = 4
SAMPLER = Sampler(range(1000, 2000))


def scheduler_of(
    *,
    num_blocks: int = 100,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 100,
    max_model_len: int = 400,
    max_num_waiting: int = 100,
    enable_prefix_caching: bool = True,
    enable_chunked_prefill: bool = True,
) -> Scheduler:
    config = SchedulerConfig(
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        max_num_waiting=max_num_waiting,
        enable_prefix_caching=enable_prefix_caching,
        enable_chunked_prefill=enable_chunked_prefill,
    )
    return Scheduler(config, TimingModel(), SAMPLER)


def run(scheduler: Scheduler, *, steps: int = 1000) -> Outputs:
    """Steps until nothing is left to do; all outputs."""
    outputs: Outputs = {}
    for _ in range(steps):
        if not scheduler.has_work:
            return outputs
        for sequence, output in scheduler.step().outputs.items():
            outputs.setdefault(sequence, []).append(output)
    raise AssertionError(f"not done after {steps} steps")


def tokens(outputs: Sequence[LLMEngineOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def test_the_step_that_completes_a_prefill_yields_the_first_token(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    request = request_of(range(10), max_tokens=3)
    sequence = scheduler.add(request)

    first = scheduler.step()
    assert first.new_tokens == 10
    assert first.duration_s == TimingModel().step_s(new_tokens=10, decoding=False, usage=0.0)
    assert first.outputs[sequence].cached_tokens == 0
    assert [len(output.token_ids) for output in first.outputs.values()] == [1]

    rest = run(scheduler)[sequence]
    assert [output.cached_tokens for output in rest] == [None, None]
    assert [output.finish_reason for output in rest] == [None, FinishReason.LENGTH]
    assert tokens([first.outputs[sequence], *rest]) == SAMPLER.script(request, 100).tokens(0, 3)


def test_a_decode_step_takes_as_long_as_the_blocks_in_use_say(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(num_blocks=10)
    scheduler.add(request_of(range(7), max_tokens=10))  # two blocks; the second becomes full with the second token
    scheduler.step()
    two, three = scheduler.step(), scheduler.step()

    assert two.duration_s == TimingModel().step_s(new_tokens=0, decoding=True, usage=0.2)
    assert three.duration_s == TimingModel().step_s(new_tokens=0, decoding=True, usage=0.3)


def test_a_long_prompt_is_prefilled_in_chunks_beside_decoding(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(max_num_batched_tokens=10)
    short = scheduler.add(request_of(range(4), max_tokens=10))
    long = scheduler.add(request_of(range(100, 125), max_tokens=10))

    steps = [scheduler.step() for _ in range(4)]
    assert [step.new_tokens for step in steps] == [4 + 6, 9, 9, 1]
    assert [list(step.outputs) for step in steps] == [[short], [short], [short], [short, long]]


def test_without_chunked_prefill_a_prompt_waits_for_a_step_that_holds_it(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(max_num_batched_tokens=30, max_model_len=30, enable_chunked_prefill=False)
    scheduler.add(request_of(range(20), max_tokens=2))
    scheduler.add(request_of(range(100, 120), max_tokens=2))

    assert [scheduler.step().new_tokens for _ in range(3)] == [20, 20, 0]


def test_no_more_than_max_num_seqs_run(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(max_num_seqs=2)
    for start in (0, 100, 200):
        scheduler.add(request_of(range(start, start + 4), max_tokens=3))

    assert len(scheduler.step().outputs) == 2
    load = scheduler.load()
    assert (load.running_requests, load.waiting_requests, load.kv_used_blocks, load.kv_total_blocks) == (2, 1, 2, 100)
    run(scheduler)
    load = scheduler.load()
    assert (load.running_requests, load.waiting_requests, load.kv_used_blocks) == (0, 0, 0)
    assert load.generated_tokens == 9


def test_a_prefix_in_the_cache_is_not_computed_again(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(range(10), max_tokens=1))
    run(scheduler)
    sequence = scheduler.add(request_of([*range(8), 50, 51, 52], max_tokens=1))

    step = scheduler.step()
    assert step.new_tokens == 3
    assert step.outputs[sequence].cached_tokens == 8


def test_a_prompt_that_is_cached_as_a_whole_still_computes_its_last_block(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    scheduler.add(request_of(range(8), max_tokens=1))
    run(scheduler)
    sequence = scheduler.add(request_of(range(8), max_tokens=1))

    step = scheduler.step()
    assert step.new_tokens == 4
    assert step.outputs[sequence].cached_tokens == 4


@pytest.mark.parametrize(("max_tokens", "cached"), [(6, 8), (7, 12)])
def test_generated_tokens_are_a_prefix_too(request_of: MakeRequest, max_tokens: int, cached: int) -> None:
    scheduler = scheduler_of()
    first = scheduler.add(request_of(range(6), max_tokens=max_tokens))  # the KV of the last token is never computed
    said = tokens(run(scheduler)[first])
    second = scheduler.add(request_of([*range(6), *said, 50], max_tokens=1))

    assert scheduler.step().outputs[second].cached_tokens == cached


def test_prefix_caching_can_be_off(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(enable_prefix_caching=False)
    for _ in range(2):
        sequence = scheduler.add(request_of(range(10), max_tokens=7))
        assert run(scheduler)[sequence][0].cached_tokens == 0
    assert scheduler.pool.free == scheduler.pool.num_blocks


def test_the_newest_gives_way_and_goes_on_exactly_where_it_was(request_of: MakeRequest) -> None:
    requests = [request_of(range(start, start + 7), max_tokens=25) for start in (0, 100, 200)]
    scheduler = scheduler_of(num_blocks=12)
    sequences = [scheduler.add(request) for request in requests]
    outputs = run(scheduler)

    assert scheduler.preemptions > 0
    for request, sequence in zip(requests, sequences, strict=True):
        assert tokens(outputs[sequence]) == SAMPLER.script(request, 400).tokens(0, 25)
        assert [output.cached_tokens is None for output in outputs[sequence]] == [False] + 24 * [True]
    assert list(outputs) == sequences  # and ended in the order in which they came
    assert scheduler.pool.used == 0


def test_a_half_prefilled_sequence_gives_way_first(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(num_blocks=10, max_num_batched_tokens=20)
    old = scheduler.add(request_of(range(8), max_tokens=20))
    new = scheduler.add(request_of(range(100, 132), max_tokens=2))

    steps = [scheduler.step() for _ in range(2)]
    assert [step.new_tokens for step in steps] == [20, 0]  # new had taken the last block, which old now needs
    assert scheduler.preemptions == 1
    assert list(steps[1].outputs) == [old]
    outputs = run(scheduler)
    assert len(tokens(outputs[new])) == 2
    assert outputs[new][0].cached_tokens == 0, "what it computed itself before it gave way does not count"


def test_who_gave_way_is_served_before_newer_ones(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(num_blocks=6, max_num_seqs=2)
    old, new, newest = (scheduler.add(request_of(range(start, start + 8), max_tokens=9)) for start in (0, 100, 200))
    outputs = run(scheduler)

    assert scheduler.preemptions > 0
    assert list(outputs) == [old, new, newest]
    ends = [outputs[sequence][-1].finish_reason for sequence in (old, new, newest)]
    assert ends == 3 * [FinishReason.LENGTH]


def test_an_aborted_sequence_frees_everything_at_once(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(max_num_batched_tokens=10)
    decoding = scheduler.add(request_of(range(8), max_tokens=20))
    prefilling = scheduler.add(request_of(range(100, 130), max_tokens=20))
    waiting = scheduler.add(request_of(range(200, 208), max_tokens=20))
    scheduler.step()

    for sequence in (prefilling, decoding, waiting, waiting):
        scheduler.abort(sequence)
    assert not scheduler.has_work
    assert scheduler.pool.used == 0


def test_a_sequence_that_gave_way_can_be_aborted(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(num_blocks=6)
    old, new = (scheduler.add(request_of(range(start, start + 8), max_tokens=9)) for start in (0, 100))
    while not scheduler.preemptions:
        scheduler.step()

    scheduler.abort(new)
    assert scheduler.load().waiting_requests == 0
    scheduler.abort(old)
    assert scheduler.pool.used == 0


def test_aborting_what_has_ended_does_nothing(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    ended = scheduler.add(request_of(range(8), max_tokens=1))
    scheduler.add(request_of(range(8), max_tokens=5))
    scheduler.step()
    used = scheduler.pool.used

    scheduler.abort(ended)
    assert scheduler.pool.used == used


def test_the_context_ends_a_sequence(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(max_model_len=20)
    sequence = scheduler.add(request_of(range(15), max_tokens=100))
    outputs = run(scheduler)[sequence]

    assert len(tokens(outputs)) == 5
    assert outputs[-1].finish_reason == FinishReason.LENGTH


def test_a_pool_smaller_than_the_context_ends_it_earlier(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(num_blocks=4)
    sequence = scheduler.add(request_of(range(15), ignore_eos=True))

    assert len(tokens(run(scheduler)[sequence])) == 1
    assert scheduler.config.context_length == 16


def test_a_stop_token_ends_with_its_id(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    said = SAMPLER.script(request_of(range(8), max_tokens=9), 100).tokens(0, 9)
    sequence = scheduler.add(request_of(range(8), max_tokens=9, stop_token_ids=(said[5],)))
    outputs = run(scheduler)[sequence]

    assert tokens(outputs) == said[:6]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == (FinishReason.STOP, said[5])


@pytest.mark.parametrize("prompt_tokens", [16, 17, 500])
def test_a_prompt_that_can_never_fit_is_refused(request_of: MakeRequest, prompt_tokens: int) -> None:
    scheduler = scheduler_of(num_blocks=4)
    with pytest.raises(ContextLengthExceededError, match=f"{prompt_tokens} tokens.* 16 tokens"):
        scheduler.add(request_of(range(prompt_tokens), max_tokens=1))
    assert not scheduler.has_work


def test_an_empty_prompt_and_no_tokens_are_refused(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    with pytest.raises(InvalidRequestError) as empty:
        scheduler.add(request_of([], max_tokens=1))
    with pytest.raises(InvalidRequestError) as nothing:
        scheduler.add(request_of([1], max_tokens=0))

    assert (empty.value.param, nothing.value.param) == ("prompt", "max_tokens")


def test_the_queue_is_bounded(request_of: MakeRequest) -> None:
    scheduler = scheduler_of(max_num_waiting=2)
    for _ in range(2):
        scheduler.add(request_of([1]))
    with pytest.raises(OverloadedError):
        scheduler.add(request_of([1]))


def test_a_step_without_work_is_empty(request_of: MakeRequest) -> None:
    scheduler = scheduler_of()
    assert scheduler.step() == StepResult(outputs={}, duration_s=0.0, new_tokens=0)

    scheduler.add(request_of([1]))
    assert scheduler.has_work


def test_counts_the_work_and_the_time_of_its_steps(request_of: MakeRequest) -> None:
    """The second prompt's first two blocks are cached; its first token is no decoded one."""
    scheduler = scheduler_of()
    busy_s = 0.0
    for _ in range(2):
        scheduler.add(request_of(range(10), max_tokens=3))
        while scheduler.has_work:
            busy_s += scheduler.step().duration_s
    load = scheduler.load()
    assert load.busy_s == pytest.approx(busy_s)
    assert (load.prefill_steps, load.prefilled_tokens) == (2, 10 + 2)
    assert (load.decode_steps, load.decoded_tokens) == (4, 4)
    assert (load.steps, load.generated_tokens) == (6, 6)
    assert load.kv_token_steps == 4 * 3 * BLOCK_SIZE
