"""Whatever comes in whatever order: nothing leaks, nobody starves, and the others don't change what one gets."""

from collections import Counter
from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.scheduler import Scheduler, StepResult
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.engines.mocker.timing import TimingModel
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest, SamplingOptions, StopConditions
from dynamo.tokens import sequence_hashes, token_array

BLOCK_SIZE = 4
SAMPLER = Sampler(range(10))  # so few that prompts and outputs meet, and stop tokens come up
STEPS_MAX = 3000

prompts = st.lists(st.sampled_from([(1,), (1, 2), (3, 1, 2, 1, 2)]), min_size=1, max_size=8).map(
    lambda pieces: [token_id for piece in pieces for token_id in piece]
)
requests = st.builds(
    lambda prompt, seed, max_tokens, stop: PreprocessedRequest(
        model="tiny",
        token_ids=token_array(prompt),
        sampling_options=SamplingOptions(seed=seed),
        stop_conditions=StopConditions(max_tokens=max_tokens, stop_token_ids=stop, ignore_eos=True),
    ),
    prompt=prompts,
    seed=st.none() | st.integers(0, 2),
    max_tokens=st.none() | st.integers(1, 30),
    stop=st.sampled_from([[], [], [4], [5, 6]]),
)
configs = st.builds(
    lambda num_blocks, max_num_seqs, more_tokens, cached: SchedulerConfig(
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + more_tokens,
        max_model_len=60,
        enable_prefix_caching=cached,
    ),
    num_blocks=st.integers(11, 30),
    max_num_seqs=st.integers(1, 5),
    more_tokens=st.integers(0, 40),
    cached=st.booleans(),
)


class StoredBlocks:
    """An observer that remembers what can be reused."""

    def __init__(self) -> None:
        self.present: set[int] = set()

    def stored(self, sequence_hashes: Sequence[int], parent: int | None) -> None:
        assert parent is None or parent in self.present
        assert self.present.isdisjoint(sequence_hashes)
        self.present.update(sequence_hashes)

    def removed(self, sequence_hashes: Sequence[int]) -> None:
        assert self.present.issuperset(sequence_hashes)
        self.present.difference_update(sequence_hashes)


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[SequenceState, PreprocessedRequest] = {}
        self.outputs: dict[SequenceState, list[LLMEngineOutput]] = {}

    @initialize(config=configs)
    def begin(self, config: SchedulerConfig) -> None:
        self.stored = StoredBlocks()
        self.scheduler = Scheduler(config, TimingModel(), SAMPLER, self.stored)

    @rule(request=requests)
    def add(self, request: PreprocessedRequest) -> None:
        sequence = self.scheduler.add(request)
        self.requests[sequence] = request
        self.outputs[sequence] = []

    @rule()
    def step(self) -> None:
        self.checked_step()

    def checked_step(self) -> StepResult:
        scheduler = self.scheduler
        decoding = list(scheduler._decoding)
        result = scheduler.step()
        decoded = [sequence for sequence in decoding if sequence in result.outputs]

        assert decoded == decoding[: len(decoded)], "only the newest give way"
        assert result.new_tokens + len(decoded) <= scheduler.config.max_num_batched_tokens
        assert scheduler.load().running_requests <= scheduler.config.max_num_seqs
        for sequence, output in result.outputs.items():
            assert len(output.token_ids) == 1
            assert (output.cached_tokens is not None) == (not self.outputs[sequence])
            self.outputs[sequence].append(output)
        return result

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(list(self.requests)))
        self.scheduler.abort(sequence)
        if not self.ended(sequence):
            self.forget(sequence)

    def forget(self, sequence: SequenceState) -> None:
        """It will say nothing more."""
        del self.requests[sequence]

    @invariant()
    def no_block_is_lost(self) -> None:
        pool = self.scheduler.pool
        scheduler = self.scheduler
        holders = self.holders()
        shared = Counter(h for sequence in holders for h in sequence.block_hashes[: sequence.shared_blocks])
        private = sum(sequence.blocks - sequence.shared_blocks for sequence in holders)

        assert pool._users == shared
        assert pool.used == len(shared) + private
        assert pool.used + pool.cached + pool.free == pool.num_blocks
        assert pool.free >= 0
        assert shared.keys() | pool._cached.keys() == self.stored.present
        assert scheduler.config.enable_prefix_caching or not self.stored.present

    @invariant()
    def nobody_overtakes(self) -> None:
        scheduler = self.scheduler
        half_done = [scheduler._prefilling] if scheduler._prefilling else []
        served = [*scheduler._decoding, *half_done, *scheduler._waiting]
        assert served == sorted(served, key=list(self.outputs).index)

    @invariant()
    def running_sequences_hold_what_they_need(self) -> None:
        for sequence in self.scheduler._decoding:
            in_cache = sequence.length - 1
            assert sequence.blocks == -(-in_cache // BLOCK_SIZE)
            if self.scheduler.config.enable_prefix_caching:
                tokens = self.requests[sequence].token_ids + token_array(self.said(sequence))
                expected = sequence_hashes(tokens[:in_cache], BLOCK_SIZE)
                assert sequence.block_hashes[: sequence.shared_blocks] == expected

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(STEPS_MAX):
            if not self.scheduler.has_work:
                break
            self.step()
            self.no_block_is_lost()
        assert not self.scheduler.has_work, "some sequence never ended"
        assert self.scheduler.pool.used == 0
        for sequence, request in self.requests.items():
            assert self.said(sequence) == alone(request, self.scheduler.config.context_length)

    def holders(self) -> list[SequenceState]:
        """Who has blocks."""
        scheduler = self.scheduler
        return [*scheduler._decoding, *([scheduler._prefilling] if scheduler._prefilling else [])]

    def said(self, sequence: SequenceState) -> list[int]:
        return [token_id for output in self.outputs[sequence] for token_id in output.token_ids]

    def ended(self, sequence: SequenceState) -> bool:
        outputs = self.outputs[sequence]
        return bool(outputs) and outputs[-1].finish_reason is not None


def alone(request: PreprocessedRequest, context_length: int) -> list[int]:
    """What a request gets when it has an engine for itself."""
    config = SchedulerConfig(block_size=BLOCK_SIZE, num_blocks=100, max_model_len=context_length)
    scheduler = Scheduler(config, TimingModel(), SAMPLER)
    scheduler.add(request)
    said: list[int] = []
    while scheduler.has_work:
        for output in scheduler.step().outputs.values():
            said += output.token_ids
    return said


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
