"""What workers are believed to have because it was sent to them."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamo.protocols.generation import WorkerId
from dynamo.router.approx import ApproxKvIndexer, Claim
from dynamo.tokens import HashArray, hash_array

A, B = WorkerId(1), WorkerId(2)
TTL_S = 10.0
PROMPT = hash_array([1, 2, 3])


def believed(index: ApproxKvIndexer, now_s: float, hashes: HashArray = PROMPT) -> dict[WorkerId, int]:
    return index.find_matches(hashes, now_s).scores


def test_what_was_sent_is_believed_for_a_while() -> None:
    index = ApproxKvIndexer(TTL_S)
    index.process_routing_decision(A, PROMPT, 0.0)
    assert believed(index, 9.9) == {A: 3}
    assert believed(index, 9.9, hash_array([1, 2, 9])) == {A: 2}
    assert believed(index, 10.0) == {}
    assert len(index) == 0


def test_a_claim_is_believed_until_it_is_settled_and_then_for_a_while() -> None:
    index = ApproxKvIndexer(TTL_S)
    claim = index.claim(A, PROMPT)
    assert believed(index, 1000.0) == {A: 3}
    index.settle(claim, 1000.0)
    index.settle(claim, 1005.0)
    assert believed(index, 1009.0) == {A: 3}
    assert believed(index, 1010.0) == {}


def test_a_claim_can_be_withdrawn_until_it_is_settled() -> None:
    index = ApproxKvIndexer(TTL_S)
    claim = index.claim(A, PROMPT)
    index.withdraw(claim)
    index.withdraw(claim)
    index.settle(claim, 0.0)
    assert believed(index, 0.0) == {}

    settled = index.claim(A, PROMPT)
    index.settle(settled, 0.0)
    index.withdraw(settled)
    assert believed(index, 0.0) == {A: 3}


def test_what_another_claim_has_stays() -> None:
    index = ApproxKvIndexer(TTL_S)
    index.process_routing_decision(A, PROMPT, 0.0)
    index.process_routing_decision(A, hash_array([1, 2]), 5.0)
    longer = index.claim(A, hash_array([1, 2, 3, 4]))
    index.withdraw(longer)
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
    claim = index.claim(A, PROMPT)
    index.process_routing_decision(A, PROMPT, 0.0)
    index.remove_worker(A)
    assert believed(index, 0.0) == {}
    assert len(index) == 0
    index.withdraw(claim)


def test_claims_on_a_worker_that_is_gone_are_none_on_the_next_with_its_name() -> None:
    index = ApproxKvIndexer(TTL_S)
    open_claim = index.claim(A, PROMPT)
    index.process_routing_decision(A, PROMPT, 0.0)
    index.remove_worker(A)
    index.process_routing_decision(A, PROMPT, 5.0)
    index.withdraw(open_claim)
    assert believed(index, 14.0) == {A: 3}  # at 10 s the former worker's claim came to its end


def test_memory_is_bounded_however_long_claims_are_believed() -> None:
    index = ApproxKvIndexer(1e9, max_blocks=10)
    for first in range(0, 100, 4):
        index.process_routing_decision(A, hash_array(range(first, first + 4)), 0.0)
    assert len(index) == 8
    assert len(index._counts[A]) == 8
    assert believed(index, 0.0, hash_array([96, 97])) == {A: 2}


def test_memory_is_bounded_where_prompts_are_alike_too() -> None:
    """And where they have no block."""
    index = ApproxKvIndexer(1e9, max_blocks=10)
    for _ in range(100):
        index.process_routing_decision(A, PROMPT, 0.0)
        index.process_routing_decision(A, hash_array(), 0.0)
    assert len(index._settled) == 3
    assert believed(index, 0.0) == {A: 3}


@dataclass
class Believed:
    """A claim as the model has it."""

    claim: Claim
    worker: WorkerId
    path: tuple[int, ...]
    due_s: float | None = None


class ApproxMachine(RuleBasedStateMachine):
    """Claims in any order, against a list of those that hold. Time may stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.index = ApproxKvIndexer(TTL_S)
        self.model: list[Believed] = []
        self.now_s = 0.0

    @rule(seconds=st.integers(0, 12))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds
        self.index.expire(self.now_s)
        self.model = [b for b in self.model if b.due_s is None or b.due_s > self.now_s]

    @rule(worker=st.sampled_from([A, B]), path=st.lists(st.integers(0, 1), max_size=4).map(tuple))
    def claim(self, worker: WorkerId, path: tuple[int, ...]) -> None:
        self.model.append(Believed(self.index.claim(worker, names(path)), worker, path))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.model))
        self.index.settle(one.claim, self.now_s)
        one.due_s = self.now_s + TTL_S if one.due_s is None else one.due_s

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.model))
        self.index.withdraw(one.claim)
        if one.due_s is None:
            self.model.remove(one)

    @rule(worker=st.sampled_from([A, B]))
    def remove_worker(self, worker: WorkerId) -> None:
        self.index.remove_worker(worker)
        self.model = [b for b in self.model if b.worker != worker]

    @invariant()
    def what_is_claimed_is_believed_and_nothing_else(self) -> None:
        blocks = {(b.worker, block) for b in self.model for block in names(b.path)}
        assert {(w, block) for w, counts in self.index._counts.items() for block in counts} == blocks
        assert len(self.index) == len({block for _, block in blocks})
        for worker in (A, B):
            assert set(self.index._tree.held(worker)) == {block for w, block in blocks if w == worker}
        assert self.index._settled_blocks == sum(len(claim.hashes) for claim in self.index._settled)

    def teardown(self) -> None:
        for one in self.model:
            self.index.withdraw(one.claim)
        self.model.clear()
        self.wait(int(TTL_S))
        self.what_is_claimed_is_believed_and_nothing_else()
        assert not self.index._settled


def names(path: tuple[int, ...]) -> HashArray:
    """A number for each prefix of the path."""
    return hash_array(int("1" + "".join(map(str, path[: depth + 1]))) for depth in range(len(path)))


TestApproxMachine = ApproxMachine.TestCase
TestApproxMachine.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
