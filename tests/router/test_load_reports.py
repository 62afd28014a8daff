"""What a worker says of itself against what is known of it."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from dynamo.protocols.generation import WorkerId
from dynamo.protocols.load import WorkerLoad
from dynamo.router.load_reports import LoadReports
from dynamo.router.sequences import ActiveSequences

BLOCK_SIZE = 4
A = WorkerId(1)
IDLE = WorkerLoad(prefill_tokens=0)


class Reports:
    """A worker's reports, with the sequences that a router knows of."""

    def __init__(self) -> None:
        self.sequences = ActiveSequences(BLOCK_SIZE)
        self.activity = self.sequences.watch(A)
        self.reports = LoadReports(self.sequences, self.activity)

    def add(self, request_id: str, tokens: int = 8, *, prefill: int | None = None, now_s: float = 0.0) -> None:
        self.sequences.add(
            request_id,
            A,
            prompt_tokens=tokens,
            prefill_tokens=tokens if prefill is None else prefill,
            now_s=now_s,
        )

    def says(self, load: WorkerLoad, now_s: float = 0.0) -> list[str]:
        """It is asked, and answers at once."""
        self.reports.expect()
        return self.reports.take(load, now_s)

    def idles(self, *times_s: float) -> list[str]:
        """All that are freed as the worker says at these times that it is idle."""
        return [request_id for now_s in times_s for request_id in self.says(IDLE, now_s)]

    @property
    def foreign(self) -> tuple[int, int, int]:
        activity = self.activity
        return activity.foreign_requests, activity.foreign_prefill_tokens, activity.foreign_blocks


@pytest.fixture
def worker() -> Reports:
    return Reports()


def busy(running: int = 1, waiting: int = 0, *, prefill_tokens: int = 0, blocks: int = 0) -> WorkerLoad:
    return WorkerLoad(
        running_requests=running, waiting_requests=waiting, prefill_tokens=prefill_tokens, kv_used_blocks=blocks
    )


class TestForeign:
    def test_all_that_a_worker_has_that_was_sent_nothing(self, worker: Reports) -> None:
        worker.says(busy(2, 1, prefill_tokens=30, blocks=9))
        assert worker.foreign == (3, 30, 9)

    def test_what_is_more_than_was_sent(self, worker: Reports) -> None:
        worker.add("r")
        worker.says(busy(2, prefill_tokens=30, blocks=9))
        assert worker.foreign == (1, 22, 7)

    def test_the_latest_report_counts(self, worker: Reports) -> None:
        for requests in (2, 5, 5, 1):
            worker.says(busy(requests, blocks=10 * requests))
            worker.reports.take(busy(requests, blocks=10 * requests), 0.0)  # said twice
            assert worker.foreign == (requests, 0, 10 * requests)
            assert worker.sequences.requests == worker.activity.requests == requests

    @pytest.mark.parametrize("nonsense", [-1, -(2**40)])
    def test_never_less_than_nothing(self, worker: Reports, nonsense: int) -> None:
        worker.add("r")
        worker.says(busy(nonsense, nonsense, prefill_tokens=nonsense, blocks=nonsense))
        assert worker.foreign == (0, 0, 0)

    def test_a_worker_knows_whole_prompts_only(self, worker: Reports) -> None:
        worker.add("r", 40, prefill=4)
        worker.says(busy(prefill_tokens=40, blocks=10))
        assert worker.foreign == (0, 0, 0)

    def test_a_prompt_that_was_prefilled_elsewhere_hides_nobody_elses(self, worker: Reports) -> None:
        """The worker tells of its last token only."""
        worker.sequences.add("r", A, prompt_tokens=10_000, prefill_tokens=1, now_s=0.0, prefilled=True)
        worker.says(busy(2, prefill_tokens=8001))
        assert worker.activity.foreign_prefill_tokens == 8000
        worker.sequences.first_token("r", 0.0)
        worker.says(busy(2, prefill_tokens=0))
        worker.says(busy(2, prefill_tokens=8000))
        assert worker.activity.foreign_prefill_tokens == 8000

    def test_prompts_that_are_prefilled_are_no_excuse(self, worker: Reports) -> None:
        worker.add("r", 40)
        worker.sequences.first_token("r", 0.0)
        worker.says(busy(prefill_tokens=40, blocks=10))
        assert worker.foreign == (0, 40, 0)

    def test_what_has_ended_while_the_answer_was_on_its_way(self, worker: Reports) -> None:
        worker.add("r")
        worker.reports.expect()
        worker.sequences.free("r")
        worker.reports.take(busy(prefill_tokens=8, blocks=2), 0.0)
        assert worker.foreign == (0, 0, 0)
        worker.says(busy(prefill_tokens=8, blocks=2))  # it still has something
        assert worker.foreign == (1, 8, 2)

    def test_what_has_come_and_gone_since_the_question(self, worker: Reports) -> None:
        worker.add("old")
        worker.reports.expect()
        for request_id in ("a", "b"):
            worker.add(request_id)
            worker.sequences.output(request_id, 4, 0.0)
        for request_id in ("a", "b", "old"):
            worker.sequences.free(request_id)
        worker.reports.take(busy(3, prefill_tokens=24, blocks=8), 0.0)
        assert worker.foreign == (0, 0, 0)

    def test_workers_that_do_not_answer_any_more(self, worker: Reports) -> None:
        worker.says(busy(2, prefill_tokens=30, blocks=9))
        for _ in range(3):
            worker.reports.expect()
            assert worker.foreign == (2, 30, 9)
        worker.reports.expect()
        assert worker.foreign == (0, 0, 0)
        worker.reports.take(busy(1), 0.0)
        assert worker.foreign == (1, 0, 0)

    def test_one_that_misses_a_question_now_and_then(self, worker: Reports) -> None:
        for _ in range(4):
            worker.says(busy(2))
            for _ in range(3):
                worker.reports.expect()
            assert worker.foreign == (2, 0, 0)


class TestIdle:
    @pytest.fixture(autouse=True)
    def _it_has_run_something(self, worker: Reports) -> None:
        worker.says(busy(), -10.0)

    def test_a_request_whose_end_nobody_has_told(self, worker: Reports) -> None:
        worker.add("lost", now_s=0.0)
        assert worker.idles(1.0, 3.0, 5.9) == []
        assert worker.idles(6.0) == ["lost"]
        assert worker.activity.requests == 0

    def test_one_that_was_lost_when_the_worker_had_long_been_idle(self, worker: Reports) -> None:
        assert worker.idles(*range(100)) == []
        worker.add("lost", now_s=99.5)
        assert worker.idles(100, 101, 102, 103, 104) == []
        assert worker.idles(105) == ["lost"]

    def test_one_that_gives_a_sign(self, worker: Reports) -> None:
        worker.add("lives", now_s=0.0)
        worker.idles(1.0)
        worker.sequences.output("lives", 1, 2.0)
        assert worker.idles(6.5) == []
        assert worker.idles(7.5) == ["lives"]

    @pytest.mark.parametrize("load", [busy(1), busy(0, 1), busy(0, prefill_tokens=8)])
    def test_not_while_the_worker_has_something(self, worker: Reports, load: WorkerLoad) -> None:
        """Which one it is nobody can tell."""
        worker.add("r", now_s=0.0)
        assert worker.idles(1.0, 4.0) == []
        assert worker.says(load, 5.0) == []
        assert worker.idles(6.0, 10.0) == []
        assert worker.idles(11.0) == ["r"]

    def test_not_after_a_single_report(self, worker: Reports) -> None:
        worker.add("r", now_s=0.0)
        assert worker.idles(1000.0) == []

    def test_silence_is_no_idleness(self, worker: Reports) -> None:
        worker.add("r", now_s=0.0)
        worker.idles(1.0)
        for _ in range(4):
            worker.reports.expect()
        assert worker.reports.take(IDLE, 10.0) == []

    def test_other_workers_requests_are_not_its_concern(self, worker: Reports) -> None:
        worker.sequences.add("other", WorkerId(2), prompt_tokens=8, prefill_tokens=8, now_s=0.0)
        assert worker.idles(1.0, 10.0) == []
        assert "other" in worker.sequences


@pytest.mark.parametrize("load", [WorkerLoad(), WorkerLoad(kv_used_blocks=3)])
def test_a_worker_that_does_not_tell_of_its_prompts_is_not_thought_idle(worker: Reports, load: WorkerLoad) -> None:
    worker.says(WorkerLoad(running_requests=1))
    worker.add("r", now_s=0.0)
    assert [worker.says(load, now_s) for now_s in (1.0, 10.0, 100.0)] == [[], [], []]


@dataclass(slots=True, kw_only=True)
class Request:
    """One that the router has sent, and how far it is at its worker, of which the router hears later."""

    id: str
    tokens: int
    arrived: bool = False
    begun: bool = False
    output: int = 0
    ended: bool = False
    begun_heard: bool = False
    output_heard: int = 0


@dataclass(slots=True)
class Engine:
    """A worker to which only this router sends anything."""

    requests: list[Request] = field(default_factory=list)

    def load(self) -> WorkerLoad:
        present = [r for r in self.requests if r.arrived and not r.ended]
        return WorkerLoad(
            running_requests=sum(r.begun for r in present),
            waiting_requests=sum(not r.begun for r in present),
            prefill_tokens=sum(r.tokens for r in present if not r.begun),
            # that of which the router has heard: what it does not hear of at once is another matter
            kv_used_blocks=sum(-(-(r.tokens + r.output_heard) // BLOCK_SIZE) for r in present),
        )


class OwnRequestsMachine(RuleBasedStateMachine):
    """Whatever the delays, a router that is alone takes none of its own requests for somebody else's.

    But for those of clients that leave: the router forgets them before the worker does, until the next report.
    """

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.router = Reports()
        self.engine = Engine()
        self.asked = False
        self.snapshot: WorkerLoad | None = None
        self.number = 0
        self.cancelled = False

    @rule(target=requests, tokens=st.integers(1, 20), cached=st.integers(0, 20))
    def send(self, tokens: int, cached: int) -> Request:
        self.number += 1
        request = Request(id=str(self.number), tokens=tokens)
        self.engine.requests.append(request)
        self.router.add(request.id, tokens, prefill=max(tokens - cached, 1))
        return request

    @rule(request=requests)
    def arrive(self, request: Request) -> None:
        request.arrived = True

    @rule(request=requests, tokens=st.integers(1, 9))
    def generate(self, request: Request, tokens: int) -> None:
        if request.arrived and not request.ended:
            request.begun = True
            request.output += tokens

    @rule(request=requests)
    def hear(self, request: Request) -> None:
        if request.begun and not request.begun_heard:
            request.begun_heard = True
            self.router.sequences.first_token(request.id, 0.0)
        self.router.sequences.output(request.id, request.output - request.output_heard, 0.0)
        request.output_heard = request.output

    @rule(request=requests)
    def end(self, request: Request) -> None:
        request.ended = request.arrived

    @rule(request=consumes(requests))
    def hear_the_end(self, request: Request) -> None:
        self.cancelled = self.cancelled or not request.ended
        self.router.sequences.free(request.id)

    @precondition(lambda self: not self.asked)
    @rule()
    def ask(self) -> None:
        self.router.reports.expect()
        self.asked = True

    @precondition(lambda self: self.asked and self.snapshot is None)
    @rule()
    def look(self) -> None:
        self.snapshot = self.engine.load()

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def answer(self) -> None:
        assert self.snapshot is not None
        self.router.reports.take(self.snapshot, 0.0)
        self.asked, self.snapshot = False, None

    @precondition(lambda self: self.asked)
    @rule()
    def lose_the_answer(self) -> None:
        self.asked, self.snapshot = False, None

    @invariant()
    def nothing_is_foreign(self) -> None:
        if not self.cancelled:
            assert self.router.foreign == (0, 0, 0)
        known = len(self.router.sequences) + self.router.activity.foreign_requests
        assert self.router.activity.requests == self.router.sequences.requests == known

    def teardown(self) -> None:
        """All is quiet."""
        for request in self.engine.requests:
            request.ended = True
            self.router.sequences.free(request.id)
        self.router.says(self.engine.load())
        activity = self.router.activity
        assert self.router.foreign == (0, 0, 0)
        assert (activity.requests, activity.prefill_tokens, activity.blocks) == (0, 0, 0)


TestOwnRequestsMachine = OwnRequestsMachine.TestCase
TestOwnRequestsMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
