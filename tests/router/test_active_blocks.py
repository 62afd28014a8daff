"""Which blocks are in use, however many requests share them."""

from itertools import takewhile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamo.protocols.generation import WorkerId
from dynamo.router.active_blocks import ActiveBlocks, Hold
from dynamo.tokens import HashArray, hash_array

from .paths import Path, names, paths

A, B = WorkerId(1), WorkerId(2)
PROMPT = hash_array([1, 2, 3])


def used(blocks: ActiveBlocks, hashes: HashArray = PROMPT) -> dict[WorkerId, int]:
    return blocks.find_matches(hashes).scores


def test_a_block_is_in_use_until_nobody_holds_it() -> None:
    blocks = ActiveBlocks()
    short = blocks.hold(A, PROMPT)
    long = blocks.hold(A, hash_array([1, 2, 3, 4]))
    assert (short.fresh, long.fresh) == (3, 1)
    assert blocks.release(short) == 0
    assert used(blocks) == {A: 3}
    assert blocks.release(long) == 4
    assert used(blocks) == {}
    assert len(blocks) == 0


def test_the_end_of_the_longer_one_goes_first() -> None:
    blocks = ActiveBlocks()
    blocks.hold(A, PROMPT)
    assert blocks.release(blocks.hold(A, hash_array([1, 2, 9, 10]))) == 2
    assert used(blocks, hash_array([1, 2, 9])) == {A: 2}
    assert len(blocks) == 3


def test_workers_are_apart() -> None:
    blocks = ActiveBlocks()
    blocks.hold(A, PROMPT)
    assert blocks.hold(B, hash_array([1])).fresh == 1
    assert used(blocks) == {A: 3, B: 1}


def test_a_prompt_without_a_block_holds_none() -> None:
    blocks = ActiveBlocks()
    hold = blocks.hold(A, hash_array())
    assert (hold.fresh, blocks.release(hold)) == (0, 0)
    blocks.hold(A, PROMPT)
    assert blocks.release(blocks.hold(A, hash_array())) == 0
    assert used(blocks) == {A: 3}


def test_holds_on_a_worker_that_is_gone_are_none_on_the_next_with_its_name() -> None:
    blocks = ActiveBlocks()
    former = blocks.hold(A, PROMPT)
    blocks.remove_worker(A)
    assert used(blocks) == {}
    assert blocks.hold(A, PROMPT).fresh == 3
    assert blocks.release(former) == 0
    assert used(blocks) == {A: 3}


def test_nothing_is_kept_of_workers_without_any() -> None:
    """Routers hear of workers that they have never known, or no longer do."""
    blocks = ActiveBlocks()
    for instance_id in range(100):
        blocks.release(blocks.hold(WorkerId(instance_id), PROMPT))
        blocks.release(blocks.hold(WorkerId(instance_id), hash_array()))
    assert not blocks._counts
    assert not blocks._tree.workers()
    assert len(blocks._tree._workers) == 1  # slots


def test_what_is_forgotten_for_want_of_room_is_released_all_the_same() -> None:
    blocks = ActiveBlocks(max_blocks=2)
    first = blocks.hold(A, PROMPT)
    second = blocks.hold(A, PROMPT)
    assert used(blocks) == {A: 2}
    assert (second.fresh, blocks.release(first), blocks.release(second)) == (0, 0, 3)
    assert len(blocks) == 0


class ActiveBlocksMachine(RuleBasedStateMachine):
    """Holds in any order, against a list of those that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = ActiveBlocks()
        self.model: list[tuple[Hold, Path]] = []
        self.lost: list[Hold] = []  # their workers are gone

    @rule(worker=st.sampled_from([A, B]), path=paths)
    def hold(self, worker: WorkerId, path: Path) -> None:
        before = self._held(worker)
        hold = self.blocks.hold(worker, names(path))
        self.model.append((hold, path))
        assert hold.fresh == len(self._held(worker) - before)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        hold, path = data.draw(st.sampled_from(self.model))
        before = self._held(hold.worker)
        self.model.remove((hold, path))
        assert self.blocks.release(hold) == len(before - self._held(hold.worker))

    @precondition(lambda self: self.lost)
    @rule()
    def release_what_is_lost(self) -> None:
        assert self.blocks.release(self.lost.pop()) == 0

    @rule(worker=st.sampled_from([A, B]))
    def remove_worker(self, worker: WorkerId) -> None:
        self.blocks.remove_worker(worker)
        self.lost += [hold for hold, _ in self.model if hold.worker == worker]
        self.model = [(hold, path) for hold, path in self.model if hold.worker != worker]

    @rule(path=paths)
    def find(self, path: Path) -> None:
        found = {}
        for worker in (A, B):
            if depth := len(list(takewhile(self._held(worker).__contains__, names(path)))):
                found[worker] = depth
        assert used(self.blocks, names(path)) == found

    @invariant()
    def what_is_held_is_in_use_and_nothing_else(self) -> None:
        assert len(self.blocks) == len(self._held(A) | self._held(B))
        for worker in (A, B):
            assert set(self.blocks._tree.held(worker)) == self._held(worker)
            assert self.blocks._counts.get(worker, {}).keys() == self._held(worker)
            assert (worker in self.blocks._counts) == bool(self._held(worker))

    def teardown(self) -> None:
        for hold, _ in self.model:
            self.blocks.release(hold)
        self.model.clear()
        self.what_is_held_is_in_use_and_nothing_else()

    def _held(self, worker: WorkerId) -> set[int]:
        return {block for hold, path in self.model if hold.worker == worker for block in names(path)}


TestActiveBlocksMachine = ActiveBlocksMachine.TestCase
TestActiveBlocksMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
