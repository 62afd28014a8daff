"""What the workers are busy with."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dynamo.protocols.generation import WorkerId
from dynamo.router.sequences import ActiveSequences

from .paths import Path, names, paths

BLOCK_SIZE = 4
A, B = WorkerId(1), WorkerId(2, 1)


@pytest.fixture
def sequences() -> ActiveSequences:
    return ActiveSequences(BLOCK_SIZE)


def add(
    sequences: ActiveSequences,
    request_id: str,
    worker: WorkerId = A,
    *,
    tokens: int = 10,
    prefill: int = 10,
    now_s: float = 0.0,
    path: Path | None = None,
    source: str = "",
) -> None:
    """`path` names the first blocks of the prompt."""
    hashes = None if path is None else names(path)
    sequences.add(
        request_id, worker, prompt_tokens=tokens, prefill_tokens=prefill, now_s=now_s, hashes=hashes, source=source
    )


def sums(sequences: ActiveSequences, worker: WorkerId = A) -> tuple[int, int, int]:
    activity = sequences.watch(worker)
    return activity.requests, activity.prefill_tokens, activity.blocks


def test_a_prompt_is_to_be_prefilled_until_the_first_token(sequences: ActiveSequences) -> None:
    add(sequences, "r", tokens=10, prefill=6)
    assert sums(sequences) == (1, 6, 3)

    assert sequences.first_token("r", 1.0)
    assert not sequences.first_token("r", 2.0)
    assert sums(sequences) == (1, 0, 3)


def test_blocks_grow_with_the_output(sequences: ActiveSequences) -> None:
    add(sequences, "r", tokens=7)
    blocks = []
    for tokens in (1, 1, 3, 1, 9):
        sequences.output("r", tokens, 0.0)
        blocks.append(sums(sequences)[2])
    assert blocks == [2, 3, 3, 4, 6]


def test_nothing_is_left_of_what_has_ended(sequences: ActiveSequences) -> None:
    add(sequences, "r")
    assert sequences.free("r")
    assert not sequences.free("r")
    assert sums(sequences) == (0, 0, 0)
    assert "r" not in sequences


def test_whole_prompts_are_pending_until_the_first_token(sequences: ActiveSequences) -> None:
    add(sequences, "a", tokens=10, prefill=1)
    add(sequences, "b", tokens=20, prefill=20)
    add(sequences, "begun", tokens=30, prefill=0)  # as another router tells of it late
    activity = sequences.watch(A)
    pending = [activity.pending_prompt_tokens]
    sequences.first_token("a", 1.0)
    pending.append(activity.pending_prompt_tokens)
    for request_id in ("a", "b"):
        sequences.free(request_id)
        pending.append(activity.pending_prompt_tokens)
    assert pending == [30, 20, 20, 0]


def test_peaks(sequences: ActiveSequences) -> None:
    activity = sequences.watch(A)

    def peaks() -> tuple[int, int, int]:
        return activity.requests_peak, activity.pending_prompt_tokens_peak, activity.blocks_peak

    add(sequences, "a", tokens=8)
    add(sequences, "b", tokens=8)
    sequences.output("b", 9, 0.0)
    sequences.free("a")
    sequences.free("b")
    add(sequences, "c", tokens=12)
    assert peaks() == (2, 16, 7)
    activity.reset_peaks()
    sequences.free("c")
    assert peaks() == (1, 12, 3)
    activity.reset_peaks()
    assert peaks() == (0, 0, 0)


def test_what_is_foreign_counts_like_the_rest(sequences: ActiveSequences) -> None:
    activity = sequences.watch(A)
    add(sequences, "r", tokens=10, prefill=6)
    sequences.set_foreign(activity, requests=5, prefill_tokens=50, blocks=20)
    assert sums(sequences) == (6, 56, 23)
    assert (sequences.requests, len(sequences)) == (6, 1)
    sequences.set_foreign(activity, requests=2, prefill_tokens=0, blocks=30)
    assert sums(sequences) == (3, 6, 33)
    assert (activity.requests_peak, activity.blocks_peak) == (3, 33)
    sequences.drop_worker(A)
    assert (sequences.requests, activity.requests, activity.blocks) == (0, 0, 0)
    assert sums(sequences) == (0, 0, 0)


def test_workers_and_their_ranks_are_counted_apart(sequences: ActiveSequences) -> None:
    add(sequences, "a", WorkerId(1, 0))
    add(sequences, "b", WorkerId(1, 1), tokens=1, prefill=1)
    assert sums(sequences, WorkerId(1, 0)) == (1, 10, 3)
    assert sums(sequences, WorkerId(1, 1)) == (1, 1, 1)


def test_an_id_that_comes_again_moves(sequences: ActiveSequences) -> None:
    add(sequences, "r", A)
    add(sequences, "r", B)
    assert (sums(sequences, A), sums(sequences, B)) == ((0, 0, 0), (1, 10, 3))
    assert len(sequences) == 1


def test_blocks_that_requests_share_are_counted_once(sequences: ActiveSequences) -> None:
    add(sequences, "a", tokens=10, path=(0, 1))
    add(sequences, "b", tokens=13, path=(0, 1, 0))
    add(sequences, "c", B, tokens=10, path=(0, 1))
    add(sequences, "theirs", tokens=10, source="router")  # who knows what it has in common with others
    assert sums(sequences)[2] == (2 + 1) + (1 + 1) + 3
    assert sums(sequences, B)[2] == 3
    assert sequences.find_active(names((0, 1, 0))).scores == {A: 3, B: 2}

    sequences.output("a", 4, 0.0)
    assert sums(sequences)[2] == 9
    sequences.free("a")
    assert sums(sequences)[2] == (3 + 1) + 3
    sequences.free("b")
    assert sequences.find_active(names((0, 1))).scores == {B: 2}


def test_an_id_that_comes_again_leaves_nothing_where_it_was(sequences: ActiveSequences) -> None:
    add(sequences, "r", A, path=(0, 1))
    add(sequences, "r", B, path=(0, 1))
    assert sequences.find_active(names((0, 1))).scores == {B: 2}


def test_stale_ones_are_swept(sequences: ActiveSequences) -> None:
    add(sequences, "silent", now_s=0.0)
    add(sequences, "begun", now_s=0.0)
    add(sequences, "talking", now_s=0.0)
    sequences.first_token("begun", 5.0)
    sequences.output("talking", 1, 5.0)  # a token that fits into its last block is a sign of life too

    assert sequences.sweep(0.0) == []
    assert sequences.sweep(5.0) == ["silent"]
    assert sums(sequences)[0] == 2


def test_stale_ones_of_one_worker(sequences: ActiveSequences) -> None:
    add(sequences, "silent", now_s=0.0)
    add(sequences, "talking", now_s=0.0)
    add(sequences, "elsewhere", B, now_s=0.0)
    sequences.output("talking", 1, 5.0)
    assert sequences.sweep_worker(sequences.watch(A), 0.0) == []
    assert sequences.sweep_worker(sequences.watch(A), 5.0) == ["silent"]
    assert "elsewhere" in sequences


def test_a_worker_takes_its_sequences_along(sequences: ActiveSequences) -> None:
    add(sequences, "a", A)
    add(sequences, "b", B)
    former = sequences.watch(A)

    assert sequences.drop_worker(A) == ["a"]
    assert sequences.drop_worker(A) == []
    assert former.requests == 0
    assert len(sequences) == 1


def test_a_worker_that_returns_begins_anew(sequences: ActiveSequences) -> None:
    add(sequences, "old", A, path=(0, 1))
    sequences.drop_worker(A)
    assert sequences.active_blocks == 0
    add(sequences, "new", A, path=(0, 0))
    sequences.free("old")
    sequences.output("old", 100, 0.0)
    assert sums(sequences) == (1, 10, 3)
    assert sequences.find_active(names((0, 1))).scores == {A: 1}


def test_another_routers_sequences_count_and_go_with_it(sequences: ActiveSequences) -> None:
    add(sequences, "own")
    add(sequences, "theirs", source="router")
    assert sums(sequences)[0] == 2
    assert [request_id for request_id, _ in sequences.of_source("")] == ["own"]

    sequences.drop_source("router")
    assert sums(sequences) == (1, 10, 3)


def test_what_comes_before_its_worker_is_known_counts(sequences: ActiveSequences) -> None:
    add(sequences, "early", A, source="router")
    assert sums(sequences, A) == (1, 10, 3)


def test_late_news_of_a_worker_that_is_gone_leave_nothing(sequences: ActiveSequences) -> None:
    sequences.watch(A)
    sequences.drop_worker(A)
    add(sequences, "late", A, source="router")
    sequences.free("late")
    assert not sequences._activities
    assert not sequences._active._counts


@dataclass
class Known:
    """A sequence as the model has it."""

    worker: WorkerId
    prefill: int
    pending: int
    tokens: int
    path: Path
    source: str
    seen_s: int


ids = st.sampled_from("abcde")
workers = st.sampled_from([A, B, WorkerId(2)])
sources = st.sampled_from(["", "router"])


class SequencesMachine(RuleBasedStateMachine):
    """Any order of news, against sums that are computed anew each time. Time may stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.sequences = ActiveSequences(BLOCK_SIZE)
        self.model: dict[str, Known] = {}
        self.now_s = 0

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(request_id=ids, worker=workers, path=paths, tail=st.integers(0, 9), cached=st.integers(0, 20))
    def add(self, request_id: str, worker: WorkerId, path: Path, tail: int, cached: int) -> None:
        self._add(request_id, worker, path, len(path) * BLOCK_SIZE + tail, cached, "")

    @rule(request_id=ids, worker=workers, tokens=st.integers(0, 20), cached=st.integers(0, 20), source=sources)
    def add_without_names(self, request_id: str, worker: WorkerId, tokens: int, cached: int, source: str) -> None:
        self._add(request_id, worker, None, tokens, cached, source)

    def _add(self, request_id: str, worker: WorkerId, path: Path | None, tokens: int, cached: int, source: str) -> None:
        prefill = max(tokens - cached, 0)
        add(
            self.sequences,
            request_id,
            worker,
            tokens=tokens,
            prefill=prefill,
            now_s=self.now_s,
            path=path,
            source=source,
        )
        self.model.pop(request_id, None)
        pending = tokens if prefill else 0
        self.model[request_id] = Known(worker, prefill, pending, tokens, path or (), source, self.now_s)

    @rule(request_id=ids)
    def first_token(self, request_id: str) -> None:
        known = self.model.get(request_id)
        sequence = self.sequences.first_token(request_id, self.now_s)
        assert (sequence is not None) == (known is not None and known.prefill > 0)
        if known is not None:
            known.prefill, known.pending, known.seen_s = 0, 0, self.now_s

    @rule(request_id=ids, tokens=st.integers(0, 9))
    def output(self, request_id: str, tokens: int) -> None:
        self.sequences.output(request_id, tokens, self.now_s)
        if (known := self.model.get(request_id)) is not None:
            known.tokens, known.seen_s = known.tokens + tokens, self.now_s

    @rule(request_id=ids)
    def free(self, request_id: str) -> None:
        assert self.sequences.free(request_id) == (self.model.pop(request_id, None) is not None)

    @rule(age_s=st.integers(0, 4))
    def sweep(self, age_s: int) -> None:
        before_s = self.now_s - age_s
        assert self.sequences.sweep(before_s) == self._drop(lambda known: known.seen_s < before_s)

    @rule(worker=workers, age_s=st.integers(0, 4))
    def sweep_worker(self, worker: WorkerId, age_s: int) -> None:
        before_s = self.now_s - age_s
        swept = self.sequences.sweep_worker(self.sequences.watch(worker), before_s)
        assert swept == self._drop(lambda known: known.worker == worker and known.seen_s < before_s)

    @rule(worker=workers)
    def drop_worker(self, worker: WorkerId) -> None:
        assert self.sequences.drop_worker(worker) == self._drop(lambda known: known.worker == worker)

    @rule(source=sources)
    def drop_source(self, source: str) -> None:
        self.sequences.drop_source(source)
        self._drop(lambda known: known.source == source)

    @rule(worker=workers)
    def watch(self, worker: WorkerId) -> None:
        self.sequences.watch(worker)

    @invariant()
    def sums_are_those_of_the_sequences(self) -> None:
        assert len(self.sequences) == len(self.model)
        expected: dict[WorkerId, tuple[int, int, int]] = {}
        for known in self.model.values():
            requests, prefill, blocks = expected.get(known.worker, (0, 0, 0))
            blocks += -(-known.tokens // BLOCK_SIZE) - len(known.path)
            expected[known.worker] = (requests + 1, prefill + known.prefill, blocks)
        for worker, (requests, prefill, blocks) in expected.items():
            expected[worker] = (requests, prefill, blocks + len(self._shared(worker)))
        assert self.sequences.active_blocks == len(set().union(*map(self._shared, expected)))
        for worker, activity in self.sequences._activities.items():
            assert activity.watched or worker in expected, "nobody needs it"
            found = (activity.requests, activity.prefill_tokens, activity.blocks)
            assert found == expected.pop(worker, (0, 0, 0))
            pending = sum(known.pending for known in self.model.values() if known.worker == worker)
            assert activity.pending_prompt_tokens == pending <= activity.pending_prompt_tokens_peak
            assert activity.requests <= activity.requests_peak
            assert activity.blocks <= activity.blocks_peak
        assert not expected

    def teardown(self) -> None:
        for request_id in self.model:
            self.sequences.free(request_id)
        self.model.clear()
        self.sums_are_those_of_the_sequences()

    def _shared(self, worker: WorkerId) -> set[int]:
        """The named blocks in use there."""
        return {block for known in self.model.values() if known.worker == worker for block in names(known.path)}

    def _drop(self, gone: Callable[[Known], bool]) -> list[str]:
        dropped = [request_id for request_id, known in self.model.items() if gone(known)]
        for request_id in dropped:
            del self.model[request_id]
        return dropped


TestSequencesMachine = SequencesMachine.TestCase
TestSequencesMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
