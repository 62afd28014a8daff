"""Whatever comes in whatever order: everybody is answered once, and nothing is left of those that have ended."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dynamo.errors import NoInstancesError, OverloadedError
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.load import WorkerLoad
from dynamo.router.config import KvRouterConfig
from dynamo.router.routing import RoutingDecision

from .scheduling import A, B, C, Fleet, fleet_of, make_fleet, only, prompt

QUEUE_SIZE = 3
EXPIRY_S = 20.0
ids = st.sampled_from("abcdefgh")
workers = st.sampled_from([A, B, C])


class SchedulerMachine(RuleBasedStateMachine):
    """`waiting` and `placed` are what whoever drives the scheduler knows. Time may stand still."""

    fleet: Fleet

    def __init__(self) -> None:
        super().__init__()
        self.waiting: set[str] = set()
        self.placed: dict[str, WorkerId] = {}
        self.present = {A, B}

    @initialize(
        policy=st.sampled_from(["fcfs", "lcfs", "wspt"]),
        threshold=st.none() | st.sampled_from([0.0, 0.2]),
        affinity=st.sampled_from(["off", "soft", "hard"]),
        temperature=st.sampled_from([0.0, 0.5]),
        feeds=st.sets(st.sampled_from([1, 2, 3])),
    )
    def begin(self, policy: str, threshold: float | None, affinity: str, temperature: float, feeds: set[int]) -> None:
        self.fleet = make_fleet(
            A,
            B,
            router_queue_policy=policy,
            router_queue_threshold=threshold,
            router_queue_size=QUEUE_SIZE,
            router_session_affinity=affinity,
            router_temperature=temperature,
            router_active_request_expiry_secs=EXPIRY_S,
            router_ttl_secs=30.0,
        )
        self.fleet.feeds.clear()
        self.fleet.feeds.update(feeds)

    @rule(seconds=st.sampled_from([0, 0, 1, 5]))
    def wait(self, seconds: int) -> None:
        self.fleet.now_s += seconds

    @rule(
        request_id=ids,
        path=st.lists(st.integers(0, 1), max_size=6),
        tail=st.integers(0, 3),
        session_id=st.sampled_from([None, "s", "t"]),
        certain=st.none() | st.sets(workers),
    )
    def submit(
        self, request_id: str, path: list[int], tail: int, session_id: str | None, certain: set[WorkerId] | None
    ) -> None:
        tokens = [token for step in path for token in [step] * 4] + [9] * tail
        eligible = None if certain is None else only(*certain)
        self.waiting.discard(request_id)
        self.placed.pop(request_id, None)
        try:
            decision = self.fleet.submit(request_id, tokens, session_id=session_id, eligible=eligible)
        except NoInstancesError:
            assert not (self.present if certain is None else self.present & certain)
        except OverloadedError:
            assert len(self.waiting) == QUEUE_SIZE
        else:
            if decision is None:
                self.waiting.add(request_id)
            else:
                assert not self.waiting, "it has overtaken those that wait"
                assert certain is None or decision.worker in certain
                self._place(decision)

    @rule()
    def take_admitted(self) -> None:
        for admitted in self.fleet.scheduler.take_admitted(self.fleet.now_s):
            self.waiting.remove(admitted.request_id)
            if admitted.decision is not None:
                assert admitted.decision.request_id == admitted.request_id
                self._place(admitted.decision)

    @rule(request_id=ids)
    def first_token(self, request_id: str) -> None:
        self.fleet.scheduler.first_token(request_id, self.fleet.now_s)

    @rule(request_id=ids, tokens=st.integers(0, 9))
    def output(self, request_id: str, tokens: int) -> None:
        self.fleet.scheduler.output(request_id, tokens, self.fleet.now_s)

    @rule(request_id=ids)
    def free(self, request_id: str) -> None:
        self.fleet.scheduler.free(request_id)
        self.waiting.discard(request_id)
        self.placed.pop(request_id, None)

    @rule()
    def sweep(self) -> None:
        for request_id in self.fleet.scheduler.sweep(self.fleet.now_s):
            del self.placed[request_id]

    @rule(present=st.sets(workers))
    def set_workers(self, present: set[WorkerId]) -> None:
        self.fleet.set_workers(*sorted(present, key=lambda worker: worker.instance_id))
        self.present = present
        self.placed = {request_id: worker for request_id, worker in self.placed.items() if worker in present}

    @rule()
    def loads_are_asked(self) -> None:
        self.fleet.scheduler.expect_loads()

    @rule(
        worker=workers,
        load=st.just(WorkerLoad())
        | st.builds(
            WorkerLoad,
            running_requests=st.integers(0, 5),
            prefill_tokens=st.integers(0, 60),
            kv_used_blocks=st.integers(0, 30),
        ),
    )
    def load(self, worker: WorkerId, load: WorkerLoad) -> None:
        for request_id in self.fleet.scheduler.on_load(worker, load, self.fleet.now_s):
            assert self.placed.pop(request_id) == worker

    @rule(instance_id=st.sampled_from([1, 2, 3]))
    def feed_comes_or_goes(self, instance_id: int) -> None:
        self.fleet.feeds ^= {instance_id}

    @invariant()
    def everyone_is_where_he_should_be(self) -> None:
        if not hasattr(self, "fleet"):
            return
        scheduler = self.fleet.scheduler
        assert scheduler.queued == len(self.waiting) <= QUEUE_SIZE
        assert {request_id: s.worker for request_id, s in scheduler.sequences.of_source("")} == self.placed
        assert set(scheduler.workers()) == self.present
        requests = sum(activity.requests for _, activity in scheduler.activities())
        assert scheduler.sequences.requests == requests >= len(self.placed)

    def teardown(self) -> None:
        if not hasattr(self, "fleet"):
            return
        scheduler = self.fleet.scheduler
        for request_id in "abcdefgh":
            scheduler.free(request_id)
        assert scheduler.queued == 0
        for worker in scheduler.workers():
            assert self.fleet.says(worker, WorkerLoad()) == []
        assert scheduler.sequences.requests == 0
        assert all(load == (0, 0, 0) for load in self.fleet.loads().values())
        assert scheduler.sequences.active_blocks == 0
        scheduler._caches._approx.expire(self.fleet.now_s + 31)
        assert scheduler._caches.empty

    def _place(self, decision: RoutingDecision) -> None:
        assert decision.worker in self.present
        assert decision.request_id not in self.placed
        assert decision.overlap.total <= decision.prompt_blocks
        self.placed[decision.request_id] = decision.worker


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


@given(
    requests=st.lists(st.tuples(st.integers(0, 2), st.sets(workers, min_size=1)), max_size=60),
    temperature=st.sampled_from([0.0, 0.5]),
)
@settings(deadline=None)
def test_who_has_too_many_requests_gets_another_only_where_nobody_else_may(
    requests: list[tuple[int, set[WorkerId]]], temperature: float
) -> None:
    """So there is always somebody."""
    fleet = fleet_of(KvRouterConfig(router_temperature=temperature), A, B, C)
    counts = Counter[WorkerId]()
    for i, (first, eligible) in enumerate(requests):
        limit = 1.5 * i / 3 + 4
        worker = fleet.worker(str(i), prompt(100 * first), eligible=only(*eligible))
        assert worker in eligible
        assert counts[worker] <= limit or all(counts[other] > limit for other in eligible)
        counts[worker] += 1
