"""What workers are believed to have because it was sent to them."""

from dataclasses import dataclass
from itertools import product

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dynamo.protocols.generation import WorkerId
from dynamo.router.approx import ApproxKvIndexer
from dynamo.tokens import HashArray, hash_array

from .paths import Path, names, paths

A, B = WorkerId(1), WorkerId(2)
TTL_S = 10.0
PROMPT = hash_array([1, 2, 3])
NOBODY = WorkerId(0)
MAX_BLOCKS = 12
EVERY_PATH = list(product((0, 1), repeat=4))

workers = st.sampled_from([A, B])


def believed(index: ApproxKvIndexer, now_s: float, hashes: HashArray = PROMPT) -> dict[WorkerId, int]:
    return index.find_matches(hashes, now_s).scores


def test_what_was_sent_is_believed_for_a_while() -> None:
    index = ApproxKvIndexer(TTL_S)
    index.process_routing_decision(A, PROMPT, 0.0)
    assert believed(index, 9.9) == {A: 3}
    assert believed(index, 9.9, hash_array([1, 2, 9])) == {A: 2}
    assert believed(index, 10.0) == {}
    assert len(index) == 0


def test_what_another_prompt_has_stays() -> None:
    index = ApproxKvIndexer(TTL_S)
    index.process_routing_decision(A, PROMPT, 0.0)
    index.process_routing_decision(A, hash_array([1, 2]), 5.0)
    assert believed(index, 9.0) == {A: 3}
    assert believed(index, 10.0) == {A: 2}
    assert believed(index, 15.0) == {}


def test_workers_are_apart() -> None:
    index = ApproxKvIndexer(TTL_S)
    index.process_routing_decision(A, PROMPT, 0.0)
    index.process_routing_decision(B, hash_array([1]), 5.0)
    assert believed(index, 5.0) == {A: 3, B: 1}
    assert believed(index, 10.0) == {B: 1}


def test_where_no_time_passes_nothing_lapses_but_what_has_no_time() -> None:
    index, forgetful = ApproxKvIndexer(TTL_S), ApproxKvIndexer(0.0)
    for each in (index, forgetful):
        each.process_routing_decision(A, PROMPT, 7.0)
    assert believed(index, 7.0) == {A: 3}
    assert believed(forgetful, 7.0) == {}


def test_a_worker_that_is_gone_has_nothing() -> None:
    index = ApproxKvIndexer(TTL_S)
    index.process_routing_decision(A, PROMPT, 0.0)
    index.remove_worker(A)
    assert believed(index, 0.0) == {}
    assert len(index) == 0


def test_what_a_worker_that_is_gone_was_sent_the_next_with_its_name_was_not() -> None:
    index = ApproxKvIndexer(TTL_S)
    index.process_routing_decision(A, PROMPT, 0.0)
    index.remove_worker(A)
    index.process_routing_decision(A, PROMPT, 5.0)
    assert believed(index, 14.0) == {A: 3}  # what lapsed at 10 s was the former one's
    assert believed(index, 15.0) == {}


def test_memory_is_bounded_however_long_it_is_believed() -> None:
    index = ApproxKvIndexer(1e9, max_blocks=10)
    for first in range(0, 100, 4):
        index.process_routing_decision(A, hash_array(range(first, first + 4)), 0.0)
    assert len(index) == 8
    assert len(index._believed) == 2
    assert believed(index, 0.0, hash_array([96, 97])) == {A: 2}


def test_of_a_prompt_longer_than_that_the_beginning_is_believed() -> None:
    index = ApproxKvIndexer(1e9, max_blocks=2)
    index.process_routing_decision(A, PROMPT, 0.0)
    assert believed(index, 0.0) == {A: 2}


def test_memory_is_bounded_where_prompts_are_alike_too() -> None:
    """And where they have no block."""
    index = ApproxKvIndexer(1e9, max_blocks=10)
    for _ in range(100):
        index.process_routing_decision(A, PROMPT, 0.0)
        index.process_routing_decision(A, hash_array(), 0.0)
    assert len(index._believed) == 3
    assert believed(index, 0.0) == {A: 3}


@dataclass
class Believed:
    """A prompt as the model has it."""

    worker: WorkerId
    path: Path
    due_s: float


class ApproxMachine(RuleBasedStateMachine):
    """Prompts in any order, against a list of those that are believed. Time may stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.index = ApproxKvIndexer(TTL_S, MAX_BLOCKS)
        self.model: list[Believed] = []
        self.now_s = 0.0

    @rule(seconds=st.integers(0, 12))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds
        self.index.expire(self.now_s)
        self.model = [b for b in self.model if b.due_s > self.now_s]

    @rule(worker=workers, path=paths)
    def send(self, worker: WorkerId, path: Path) -> None:
        self.index.process_routing_decision(worker, names(path), self.now_s)
        self.model.append(Believed(worker, path, self.now_s + TTL_S))
        while sum(len(b.path) for b in self.model) > MAX_BLOCKS:
            del self.model[0]

    @rule(worker=workers)
    def remove_worker(self, worker: WorkerId) -> None:
        """What it was sent is believed no more, but has its place in the memory until it would have lapsed."""
        self.index.remove_worker(worker)
        for b in self.model:
            b.worker = NOBODY if b.worker == worker else b.worker

    @invariant()
    def what_was_sent_is_believed_and_nothing_else(self) -> None:
        blocks = {(b.worker, block) for b in self.model if b.worker != NOBODY for block in names(b.path)}
        assert len(self.index) == len({block for _, block in blocks})
        for worker in (A, B):
            mine = {block for w, block in blocks if w == worker}
            for path in EVERY_PATH:
                held = [block for block in names(path) if block in mine]  # with one come all before it
                assert believed(self.index, self.now_s, names(path)).get(worker, 0) == len(held)

    def teardown(self) -> None:
        self.wait(int(TTL_S))
        assert len(self.index) == 0
        assert not self.index._believed
        assert not self.index._believed_blocks


TestApproxMachine = ApproxMachine.TestCase
TestApproxMachine.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
