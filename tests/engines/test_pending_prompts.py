"""Which prompts have not been answered with anything yet."""

from dynamo.engines.pending_prompts import PendingPrompts
from dynamo.protocols.disagg import Handoff
from dynamo.protocols.generation import PreprocessedRequest
from dynamo.protocols.load import WorkerLoad
from dynamo.tokens import token_array

ONE_RANK = [WorkerLoad(running_requests=3)]
RANKS = [WorkerLoad(dp_rank=rank) for rank in range(3)]


def request(tokens: int, dp_rank: int | None = None) -> PreprocessedRequest:
    return PreprocessedRequest(model="m", token_ids=token_array(range(tokens)), dp_rank=dp_rank)


def tokens(pending: PendingPrompts, loads: list[WorkerLoad]) -> list[int | None]:
    return [load.prefill_tokens for load in pending.fill_in(loads)]


def test_all_that_were_not_removed_count() -> None:
    pending = PendingPrompts()
    for count in (5, 7, 7):
        pending.add(request(count))
    pending.remove(request(7))
    assert pending.fill_in(ONE_RANK) == [WorkerLoad(running_requests=3, prefill_tokens=12)]
    assert ONE_RANK[0].prefill_tokens is None


def test_each_rank_has_its_own() -> None:
    pending = PendingPrompts()
    pending.add(request(5, 0))
    pending.add(request(9, 2))
    assert tokens(pending, RANKS) == [5, 0, 9]


def test_ranks_share_what_names_none() -> None:
    pending = PendingPrompts()
    pending.add(request(5, 0))
    pending.add(request(30))
    assert tokens(pending, RANKS) == [15, 10, 10]
    assert tokens(pending, []) == []


def test_nothing_is_left_of_ranks_that_do_not_exist() -> None:
    pending = PendingPrompts()
    for rank in range(100):
        pending.add(request(rank, rank))
        pending.remove(request(rank, rank))
    assert not pending._tokens


def test_what_was_prefilled_elsewhere_is_no_prompt_to_prefill() -> None:
    pending = PendingPrompts()
    prefilled = request(1000)
    prefilled.handoff = Handoff(engine="test", params=b"")
    pending.add(prefilled)
    pending.add(request(5))
    assert tokens(pending, ONE_RANK) == [6]
    pending.remove(prefilled)
    assert tokens(pending, ONE_RANK) == [5]
