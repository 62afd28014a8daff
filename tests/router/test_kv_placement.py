"""What the scheduler hears of a request while its answer passes."""

from collections.abc import Iterable

import pytest

from dynamo.protocols.disagg import Handoff
from dynamo.protocols.generation import LLMEngineOutput, WorkerId
from dynamo.protocols.routing import RoutingReport
from dynamo.router.kv_placement import KvPlacement
from dynamo.router.radix_tree import NO_OVERLAP
from dynamo.router.routing import RoutingDecision
from dynamo.telemetry.router_metrics import RouterFigures

WORKER = WorkerId(7, 1)
REPORT = RoutingReport(mode="kv", worker_id=7, dp_rank=1, prompt_blocks=2, block_size=4, overlap_blocks=0)


class Notes:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.figures = RouterFigures()
        self.told: list[str | int] = []

    def first_token(self, request_id: str) -> None:
        self.told.append("first token")

    def output(self, request_id: str, tokens: int) -> None:
        self.told.append(tokens)

    def free(self, request_id: str) -> None:
        self.told.append("free")


def passed(*tokens: int, report: RoutingReport | None = None) -> tuple[Notes, list[LLMEngineOutput]]:
    """An answer with outputs of so many tokens, to its end."""
    notes, outputs = Notes(), list[LLMEngineOutput]()
    decision = RoutingDecision(
        request_id="r", worker=WORKER, overlap=NO_OVERLAP, prompt_blocks=2, cost=0.0, mean_cost=0.0
    )
    placement = KvPlacement(notes, decision, report, prompt_tokens=10, block_size=4)
    assert (placement.worker, placement.dp_rank) == (WORKER, 1)

    def deliver(output: LLMEngineOutput) -> bool:
        outputs.append(output)
        return len(outputs) % 2 == 0

    push = placement.watched(deliver)
    said = [push(LLMEngineOutput(token_ids=[1] * count, cached_tokens=8)) for count in tokens]
    assert said == [number % 2 == 1 for number in range(len(tokens))]
    placement.end()
    return notes, outputs


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ([], ["free"]),
        ([1], ["first token", 1, "free"]),
        ([1] * 10, ["first token", 1, 4, 4, "free"]),
        ([3, 3, 3, 9, 0, 1], ["first token", 3, 6, 9, "free"]),
    ],
)
def test_tokens_are_told_by_the_block_but_for_the_first(tokens: Iterable[int], told: list[str | int]) -> None:
    notes, outputs = passed(*tokens)
    assert notes.told == told
    assert [len(output.token_ids) for output in outputs] == list(tokens)


def test_the_first_output_explains_and_counts() -> None:
    notes, outputs = passed(1, 1, report=REPORT)
    assert [output.routing for output in outputs] == [REPORT, None]
    assert (notes.figures.prompt_tokens, notes.figures.cached_tokens) == (10, 8)


def test_a_handoff_that_comes_before_the_prefill_is_done_is_no_first_token() -> None:
    notes = Notes()
    decision = RoutingDecision(
        request_id="r", worker=WORKER, overlap=NO_OVERLAP, prompt_blocks=2, cost=0.0, mean_cost=0.0
    )
    outputs = list[LLMEngineOutput]()

    def deliver(output: LLMEngineOutput) -> bool:
        outputs.append(output)
        return True

    push = KvPlacement(notes, decision, REPORT, prompt_tokens=10, block_size=4).watched(deliver)
    push(LLMEngineOutput(handoff=Handoff(engine="test", params=b"")))
    assert notes.told == []
    push(LLMEngineOutput(token_ids=[1]))
    assert notes.told == ["first token", 1]
    assert [output.routing for output in outputs] == [REPORT, None]


def test_what_was_prefilled_elsewhere_says_nothing_of_the_cache() -> None:
    notes = Notes()
    decision = RoutingDecision(
        request_id="r", worker=WORKER, overlap=NO_OVERLAP, prompt_blocks=2, cost=0.0, mean_cost=0.0
    )
    push = KvPlacement(notes, decision, None, prompt_tokens=None, block_size=4).watched(lambda _: True)
    push(LLMEngineOutput(token_ids=[1], cached_tokens=9))
    assert notes.told == ["first token", 1]
    assert (notes.figures.prompt_tokens, notes.figures.cached_tokens) == (0, 0)
