"""KV routing with live workers: what they say arrives, requests wait their turn, and nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dynamo.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    DynamoError,
    NoInstancesError,
    OverloadedError,
    RequestCancelledError,
)
from dynamo.protocols.disagg import Handoff
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, WorkerId
from dynamo.protocols.kv_events import AllBlocksCleared, BlockStored, KvEventBatch
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import RuntimeLimits
from dynamo.protocols.routing import Prospect, RoutingReport
from dynamo.router import kv_placer, load_reports, load_watcher
from dynamo.router.config import KvRouterConfig
from dynamo.router.indexer import KvIndexer
from dynamo.router.kv_placer import KvPlacer
from dynamo.router.publisher import KV_EVENTS_ENDPOINT, KvEventFeed, WorkerMetricsPublisher
from dynamo.router.push_router import PushRouter
from dynamo.router.routing import RoutingRequest
from dynamo.router.subscriber import FeedSubscriber
from dynamo.runtime import Client, Context, DistributedRuntime, RuntimeConfig
from dynamo.runtime.distributed import SharedParts
from dynamo.runtime.event_feed import DumpEnd, FeedItem
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted, answers
from dynamo.testing.stages import outputs_of
from dynamo.tokens import hashes_to_bytes, sequence_hashes, token_array

from .feed_world import replace
from .planes import ALL, planes

ENDPOINT = "test.backend.generate"
BLOCK_SIZE = 4
PROMPT = list(range(42))
FIRST = LLMEngineOutput(token_ids=[1], cached_tokens=8)
DONE = LLMEngineOutput(token_ids=[2], finish_reason=FinishReason.STOP)
BATCH_TOKENS = 32  # PROMPT is more than one batch
QUEUEING = KvRouterConfig(router_queue_threshold=1, router_queue_size=2, router_replica_sync=True)


def request(tokens: list[int] = PROMPT, **fields: Any) -> PreprocessedRequest:
    return PreprocessedRequest(model="m", token_ids=token_array(tokens), explain_routing=True, **fields)


@dataclass(slots=True, kw_only=True)
class Worker:
    runtime: DistributedRuntime
    feed: KvEventFeed
    load: WorkerMetricsPublisher
    engine: Any

    @property
    def id(self) -> int:
        return self.runtime.instance_id

    def store(self, tokens: list[int], dp_rank: int = 0) -> None:
        """Its cache holds this from now on."""
        hashes = hashes_to_bytes(sequence_hashes(token_array(tokens), BLOCK_SIZE))
        self.feed.publish(KvEventBatch(dp_rank, [BlockStored(hashes)]))


@dataclass(slots=True, kw_only=True)
class Router:
    client: Client
    placer: KvPlacer
    members: dict[int, RuntimeLimits]
    push: PushRouter

    async def ask(self, asked: PreprocessedRequest, context: Context | None = None) -> list[LLMEngineOutput]:
        return await outputs_of(self.push.generate, asked, context)

    async def report(self, asked: PreprocessedRequest) -> RoutingReport:
        """How the router explains where the request went."""
        first, *_ = await self.ask(asked)
        assert first.routing is not None
        assert first.worker_id == WorkerId(first.routing.worker_id, first.routing.dp_rank)
        return first.routing

    def knows(self, *workers: Worker) -> bool:
        """Whether all that these say of their caches has arrived."""
        return all(
            {h for w, _, hashes in self.placer.indexer.tree.dump() if w.instance_id == worker.id for h in hashes}
            == {h for w, _, hashes in expected(worker) for h in hashes}
            for worker in workers
        )

    def idle(self) -> bool:
        """Whether no load is left over, and nobody waits."""
        figures = self.placer.worker_figures()
        return not self.placer.scheduler.queued and not any(f.prefill_tokens or f.blocks for f in figures)


def expected(worker: Worker) -> Iterable[Any]:
    known = KvIndexer()
    replace(known, worker.id, worker.feed.held.dump())
    return known.tree.dump()


@dataclass(slots=True)
class Cluster:
    config: RuntimeConfig
    shared: SharedParts = field(default_factory=SharedParts)
    runtimes: list[DistributedRuntime] = field(default_factory=list)
    routers: list[Router] = field(default_factory=list)

    def runtime(self) -> DistributedRuntime:
        self.runtimes.append(DistributedRuntime(config=self.config, shared=self.shared))
        return self.runtimes[-1]

    async def worker(self, engine: Any = None) -> Worker:
        runtime = self.runtime()
        engine = engine or Scripted[Any, Any](answers(FIRST, DONE))
        worker = Worker(runtime=runtime, feed=KvEventFeed(), load=WorkerMetricsPublisher(), engine=engine)
        await worker.feed.start(runtime.endpoint(ENDPOINT))
        await worker.load.create_endpoint(runtime.endpoint(ENDPOINT))
        await runtime.endpoint(ENDPOINT).start(engine, request_type=PreprocessedRequest)
        return worker

    async def router(self, config: KvRouterConfig, *workers: Worker, ranks: int = 1) -> Router:
        """A router that knows these workers."""
        runtime = self.runtime()
        endpoint = runtime.endpoint(ENDPOINT)
        client = await endpoint.client()
        placer = KvPlacer(runtime, endpoint.id, BLOCK_SIZE, config, "m")
        limits = RuntimeLimits(max_num_batched_tokens=BATCH_TOKENS, data_parallel_size=ranks)
        members = {worker.id: limits for worker in workers}
        placer.set_instances(members)
        push = PushRouter(client, placer, members.__contains__, members.__contains__)
        self.routers.append(Router(client=client, placer=placer, members=members, push=push))
        await eventually(lambda: set(members) <= set(client.instance_ids()))
        if config.use_kv_events:
            await eventually(lambda: all(map(placer._has_feed, members)))
        return self.routers[-1]


@pytest.fixture(params=ALL)
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with planes(request.param, tmp_path) as config:
        cluster = Cluster(config)
        yield cluster
        for router in cluster.routers:
            await within(router.placer.close())
        await within(asyncio.gather(*(runtime.close(graceful=False) for runtime in cluster.runtimes)))


async def test_requests_go_where_their_prefix_is(cluster: Cluster) -> None:
    workers = [await cluster.worker() for _ in range(3)]
    router = await cluster.router(KvRouterConfig(), *workers)
    workers[1].store(PROMPT[:24])
    await eventually(lambda: router.knows(*workers))

    report = await router.report(request())

    assert (report.mode, report.worker_id, report.dp_rank) == ("kv", workers[1].id, 0)
    assert (report.prompt_blocks, report.block_size, report.overlap_blocks) == (10, BLOCK_SIZE, 6)
    assert report.no_overlap_reason is None
    held = {candidate.worker_id: candidate.device_blocks for candidate in report.candidates}
    assert held == {workers[0].id: 0, workers[1].id: 6, workers[2].id: 0}
    assert workers[1].engine.requests[0].dp_rank == 0
    assert router.idle()


async def test_cleared_cache_is_believed(cluster: Cluster) -> None:
    worker = await cluster.worker()
    router = await cluster.router(KvRouterConfig(), worker)
    worker.store(PROMPT)
    await eventually(lambda: router.knows(worker))
    assert (await router.report(request())).overlap_blocks == 10
    worker.feed.publish(KvEventBatch(0, [AllBlocksCleared()]))
    await eventually(lambda: not len(router.placer.indexer.tree))
    report = await router.report(request())
    assert report.overlap_blocks == 0
    assert report.no_overlap_reason


async def test_caches_are_known_even_where_they_count_for_nothing(cluster: Cluster) -> None:
    worker = await cluster.worker()
    router = await cluster.router(KvRouterConfig(overlap_score_weight=0), worker)
    worker.store(PROMPT)
    await eventually(lambda: router.knows(worker))
    assert (await router.report(request())).overlap_blocks == 10


async def test_reasons_are_for_those_who_ask(cluster: Cluster) -> None:
    router = await cluster.router(KvRouterConfig(), await cluster.worker())
    outputs = await router.ask(PreprocessedRequest(model="m", token_ids=token_array(PROMPT)))
    assert [output.routing for output in outputs] == [None] * len(outputs)


async def test_without_events_from_what_was_sent(cluster: Cluster) -> None:
    workers = [await cluster.worker() for _ in range(3)]
    router = await cluster.router(KvRouterConfig(use_kv_events=False), *workers)
    first = await router.report(request())
    assert first.overlap_blocks == 0
    later = [await router.report(request([*PROMPT, *range(100, 100 + turn)])) for turn in range(8)]
    assert {report.worker_id for report in later} == {first.worker_id}
    assert all(report.overlap_blocks >= 10 for report in later)
    index = router.placer.index_figures()
    assert (index.blocks, index.believed_blocks) == (0, 12)


async def test_siblings_of_a_burst_stay_together(cluster: Cluster) -> None:
    """They come before the worker can have said anything of the first."""
    workers = [await cluster.worker(Scripted[Any, Any](answers(FIRST), hang=True)) for _ in range(3)]
    router = await cluster.router(KvRouterConfig(prefill_load_scale=10, overlap_score_weight=10), *workers)
    asking = [asyncio.create_task(router.ask(request([*PROMPT, n]))) for n in range(4)]
    await eventually(lambda: sum(worker.engine.open for worker in workers) == 4)
    assert sorted(worker.engine.open for worker in workers) == [0, 0, 4]
    await cancel(*asking)
    assert router.idle()


async def test_load_is_held_until_the_end_of_the_stream(cluster: Cluster) -> None:
    go = asyncio.Event()

    async def engine(asked: PreprocessedRequest) -> AsyncIterator[LLMEngineOutput]:
        await go.wait()
        yield LLMEngineOutput(token_ids=[1] * 10)
        await asyncio.get_running_loop().create_future()

    worker = await cluster.worker(engine)
    router = await cluster.router(KvRouterConfig(), worker)
    asking = asyncio.create_task(router.ask(request()))
    await eventually(lambda: load(router) == (42, 11))
    go.set()
    await eventually(lambda: load(router) == (0, 13))
    await cancel(asking)
    assert load(router) == (0, 0)


def load(router: Router) -> tuple[int, int]:
    """Of the only worker: tokens to prefill, blocks in use."""
    [figures] = router.placer.worker_figures()
    return figures.prefill_tokens, figures.blocks


@pytest.fixture
def often_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers say many times a second how busy they are."""
    monkeypatch.setattr(load_watcher.LoadWatcher.__init__, "__defaults__", (0.05,))


@pytest.mark.usefixtures("often_asked")
async def test_workers_that_others_keep_busy_cost_more(cluster: Cluster) -> None:
    busy, free = await cluster.worker(), await cluster.worker()
    router = await cluster.router(KvRouterConfig(), busy, free)
    busy.load.publish(WorkerLoad(kv_used_blocks=500))
    free.load.publish(WorkerLoad(kv_used_blocks=1))

    def seen() -> dict[int, int]:
        decision = router.placer.look(RoutingRequest(request_id="", token_ids=token_array(PROMPT), explain=True))
        return {candidate.worker.instance_id: candidate.decode_blocks for candidate in decision.candidates}

    await eventually(lambda: seen() == {busy.id: 500, free.id: 1})
    assert (await router.report(request())).worker_id == free.id
    figures = {f.instance_id: (f.blocks, f.foreign_blocks) for f in router.placer.worker_figures()}
    assert figures == {busy.id: (500, 500), free.id: (1, 1)}


async def test_what_workers_have_told_holds_until_they_are_asked_in_vain(cluster: Cluster) -> None:
    tells, silent = await cluster.worker(), await cluster.worker()
    placer = (await cluster.router(KvRouterConfig(), tells, silent)).placer

    def foreign() -> dict[int, int]:
        return {figures.instance_id: figures.foreign_requests for figures in placer.worker_figures()}

    for worker in (tells, silent):
        placer._on_told(worker.id, [WorkerLoad(running_requests=1)])
    assert foreign() == {tells.id: 1, silent.id: 1}
    for _ in range(4):
        placer._on_ask({tells.id})
    assert foreign() == {tells.id: 1, silent.id: 0}
    for _ in range(4):
        placer._on_told(tells.id, [WorkerLoad(running_requests=2)])
    assert foreign() == {tells.id: 2, silent.id: 0}


@pytest.mark.usefixtures("often_asked")
@pytest.mark.parametrize("ending", ["it is done", "it does not say any more"])
async def test_requests_wait_while_others_keep_all_workers_busy(cluster: Cluster, ending: str) -> None:
    """Nothing of the router's own ends, which would let them go."""
    worker = await cluster.worker()
    router = await cluster.router(QUEUEING, worker)
    worker.load.publish(WorkerLoad(running_requests=1, prefill_tokens=BATCH_TOKENS + 1))
    await eventually(lambda: load(router)[0] > BATCH_TOKENS)
    waiting = asyncio.create_task(router.ask(request()))
    await eventually(lambda: router.placer.scheduler.queued == 1)
    if ending == "it is done":
        worker.load.publish(WorkerLoad(running_requests=1))
    else:
        await worker.runtime.stop_serving(worker.runtime.endpoint(ENDPOINT).id.beside("load"))
    assert await within(waiting)


@pytest.mark.usefixtures("often_asked")
async def test_requests_that_an_idle_worker_cannot_have(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their client is gone, and has not told of their end."""
    monkeypatch.setattr(load_reports, "_IDLE_S", 0.2)
    worker = await cluster.worker()
    router = await cluster.router(QUEUEING, worker)
    worker.load.publish(WorkerLoad(running_requests=1))
    await eventually(lambda: router.placer.worker_figures()[0].foreign_requests == 1)
    await router.placer.decide(RoutingRequest(request_id="lost", token_ids=token_array(PROMPT)), Context())
    waiting = asyncio.create_task(router.ask(request()))
    await eventually(lambda: router.placer.scheduler.queued == 1)
    worker.load.publish(WorkerLoad(prefill_tokens=0))
    assert await within(waiting)
    assert not router.placer.knows("lost")
    assert f"instance {worker.id:x}, rank 0, has been idle: 1 requests" in caplog.text


async def test_ranks_are_workers_of_their_own(cluster: Cluster) -> None:
    worker = await cluster.worker()
    router = await cluster.router(KvRouterConfig(), worker, ranks=3)
    worker.store(PROMPT, dp_rank=2)
    await eventually(lambda: router.knows(worker))
    assert (await router.report(request())).dp_rank == 2
    assert (await router.report(request(target=WorkerId(worker.id)))).dp_rank == 2  # the client has named no rank
    assert (await router.report(request(dp_rank=1))).dp_rank == 1
    assert [asked.dp_rank for asked in worker.engine.requests] == [2, 2, 1]


@pytest.mark.parametrize(("announced", "believed"), [(0, 0), (-1, 0), (2**60, 1024)])
async def test_number_of_ranks_that_makes_no_sense(cluster: Cluster, announced: int, believed: int) -> None:
    router = await cluster.router(KvRouterConfig(), await cluster.worker(), ranks=announced)
    assert len(router.placer.scheduler.workers()) == believed


async def test_named_worker_gets_what_another_has_cached(cluster: Cluster) -> None:
    cached, named = await cluster.worker(), await cluster.worker()
    router = await cluster.router(KvRouterConfig(), cached, named)
    cached.store(PROMPT)
    await eventually(lambda: router.knows(cached))
    report = await router.report(request(target=WorkerId(named.id)))
    assert (report.worker_id, report.overlap_blocks) == (named.id, 0)


async def test_another_worker_where_the_best_fails(cluster: Cluster) -> None:
    broken = await cluster.worker(Scripted[Any, Any](answers(ConnectionLostError("it is gone"))))
    good = await cluster.worker()
    router = await cluster.router(KvRouterConfig(), broken, good)
    broken.store(PROMPT)
    await eventually(lambda: router.knows(broken))
    for _ in range(3):
        assert (await router.report(request())).worker_id == good.id
    assert len(broken.engine.requests) == 1  # it is left alone for a moment
    assert router.idle()


async def test_members_that_are_not_there_are_not_tried_forever(cluster: Cluster) -> None:
    """One has just died, another has just come, and the router is told later."""
    here, gone = await cluster.worker(), await cluster.worker()
    router = await cluster.router(KvRouterConfig(), gone)
    await within(gone.runtime.close(graceful=False))
    await eventually(lambda: router.client.instance_ids() == [here.id])
    router.members[here.id] = RuntimeLimits()
    with pytest.raises(NoInstancesError):
        await within(router.ask(request()))


class TestQueue:
    """The only worker is busy with a long prompt, so that everybody else has to wait."""

    @dataclass(slots=True)
    class Busy:
        worker: Worker
        router: Router
        first: asyncio.Task[list[LLMEngineOutput]]
        go: asyncio.Event

        async def waits(self, context: Context | None = None, **fields: Any) -> asyncio.Task[list[LLMEngineOutput]]:
            """A further request, once it waits."""
            before = self.router.placer.scheduler.queued
            task = asyncio.create_task(self.router.ask(request(**fields), context))
            await eventually(lambda: self.router.placer.scheduler.queued == before + 1 or task.done())
            return task

    @pytest.fixture
    async def busy(self, cluster: Cluster) -> AsyncIterator[Busy]:
        go = asyncio.Event()

        async def engine(asked: PreprocessedRequest) -> AsyncIterator[LLMEngineOutput]:
            await go.wait()
            yield FIRST
            yield DONE

        worker = await cluster.worker(engine)
        router = await cluster.router(QUEUEING, worker)
        first = asyncio.create_task(router.ask(request()))
        await eventually(lambda: load(router)[0] > BATCH_TOKENS)
        yield self.Busy(worker, router, first, go)
        await cancel(first)
        assert router.idle()
        assert not router.placer._waiting

    async def test_turn_comes_with_the_first_token(self, busy: Busy) -> None:
        waiting = await busy.waits()
        assert busy.router.placer.index_figures().queued_requests == 1
        busy.go.set()
        first, *_ = await within(waiting)
        assert first.routing is not None
        assert first.routing.queued_ms > 0
        await within(busy.first)

    async def test_client_that_leaves(self, busy: Busy) -> None:
        leaving, staying = await busy.waits(), await busy.waits()
        await cancel(leaving)
        assert busy.router.placer.scheduler.queued == 1
        busy.go.set()
        await within(staying)

    async def test_request_that_is_stopped(self, busy: Busy) -> None:
        context = Context()
        waiting = await busy.waits(context)
        context.stop_generating()
        assert isinstance(await failure(waiting), RequestCancelledError)
        context = Context()
        context.kill()  # before it came to wait
        assert isinstance(await failure(await busy.waits(context)), RequestCancelledError)

    async def test_deadline(self, busy: Busy) -> None:
        loop = asyncio.get_running_loop()
        waiting = await busy.waits(Context(deadline_s=loop.time() + 0.02))
        assert isinstance(await failure(waiting), DeadlineExceededError)

    async def test_too_many(self, busy: Busy) -> None:
        waiting = [await busy.waits() for _ in range(2)]
        error = await failure(await busy.waits())
        assert isinstance(error, OverloadedError)
        assert error.http_status == 503
        busy.go.set()
        await within(asyncio.gather(*waiting))

    async def test_model_is_withdrawn(self, busy: Busy) -> None:
        """Its worker goes on with what it has, so that nobody's turn would come."""
        waiting = [await busy.waits() for _ in range(2)]
        await within(busy.router.placer.close())
        for task in waiting:
            assert isinstance(await failure(task), NoInstancesError)
        busy.go.set()
        assert [output.token_ids for output in await within(busy.first)] == [[1], [2]]

    async def test_last_worker_crashes_with_requests_that_wait(self, busy: Busy) -> None:
        """Their turn comes, as what it was busy with has failed; then there is nobody."""
        waiting = await busy.waits()
        await within(busy.worker.runtime.close(graceful=False))
        assert isinstance(await failure(waiting), DynamoError)

    async def test_another_worker_comes(self, busy: Busy, cluster: Cluster) -> None:
        waiting = await busy.waits(tokens=[token + 1000 for token in PROMPT])  # nothing keeps it with the first one
        second = await cluster.worker()
        await eventually(lambda: second.id in busy.router.client.instance_ids())
        busy.router.members[second.id] = RuntimeLimits()
        busy.router.placer.set_instances(busy.router.members)
        first, *_ = await within(waiting)
        assert first.worker_id == WorkerId(second.id)

    async def test_another_worker_is_not_the_one_that_the_client_names(self, busy: Busy, cluster: Cluster) -> None:
        waiting = await busy.waits(tokens=[token + 1000 for token in PROMPT], target=WorkerId(busy.worker.id))
        second = await cluster.worker()
        busy.router.members[second.id] = RuntimeLimits()
        busy.router.placer.set_instances(busy.router.members)
        busy.go.set()
        first, *_ = await within(waiting)
        assert first.worker_id == WorkerId(busy.worker.id)

    async def test_priority(self, busy: Busy) -> None:
        order: list[str] = []

        def note(name: str) -> Callable[[Any], None]:
            return lambda _: order.append(name)

        for name, priority in (("low", 0.0), ("high", 1000.0)):
            (await busy.waits(priority=priority)).add_done_callback(note(name))
        busy.go.set()
        await eventually(lambda: len(order) == 2)
        assert order == ["high", "low"]

    async def test_freed_before_its_turn(self, busy: Busy) -> None:
        routing = RoutingRequest(request_id="mine", token_ids=token_array(PROMPT))
        waiting = asyncio.create_task(busy.router.placer.decide(routing, Context()))
        await eventually(lambda: busy.router.placer.knows("mine"))
        busy.router.placer.free("mine")
        assert isinstance(await failure(waiting), RequestCancelledError)
        assert not busy.router.placer.knows("mine")


async def failure(task: asyncio.Task[Any]) -> BaseException | None:
    await within(asyncio.wait([task]))
    return task.exception()


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await within(asyncio.wait(tasks))


async def test_load_whose_end_nobody_tells_is_swept(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_placer, "_SWEEP_INTERVAL_S", 0.01)
    worker = await cluster.worker()
    router = await cluster.router(KvRouterConfig(router_active_request_expiry_secs=0.03), worker)
    await router.placer.decide(RoutingRequest(request_id="lost", token_ids=token_array(PROMPT)), Context())
    assert router.placer.knows("lost")
    await eventually(router.idle)
    assert not router.placer.knows("lost")


async def test_figures(cluster: Cluster) -> None:
    workers = [await cluster.worker() for _ in range(2)]
    router = await cluster.router(KvRouterConfig(), *workers)
    workers[0].store(PROMPT[:24])
    await eventually(lambda: router.knows(*workers))
    await router.ask(request())
    figures = router.placer.figures
    assert (figures.decisions, figures.overlap_tokens) == (1, 24)
    assert (figures.prompt_tokens, figures.cached_tokens) == (42, 8)  # what the engine says of it
    assert figures.chosen_cost < figures.mean_cost
    index = router.placer.index_figures()
    assert (index.blocks, index.events, index.malformed_events, index.gaps) == (6, 1, 0, 0)
    assert index.believed_blocks == 0  # the worker will say itself what it has prefilled
    assert {f.instance_id for f in router.placer.worker_figures()} == {worker.id for worker in workers}


async def test_nobody_is_followed_before_it_is_known_who_serves_the_model(cluster: Cluster) -> None:
    feed = Scripted[Any, Any](lambda request: [DumpEnd(0, 0)], hang=True)
    runtime, worker = cluster.runtime(), cluster.runtime()
    endpoint = runtime.endpoint(ENDPOINT).id
    await worker.endpoint(str(endpoint.beside(KV_EVENTS_ENDPOINT))).start(feed)
    placer = KvPlacer(runtime, endpoint, BLOCK_SIZE, KvRouterConfig())
    events = runtime.client(endpoint.beside(KV_EVENTS_ENDPOINT), FeedItem)
    later = FeedSubscriber(events, KvIndexer())  # of whomever
    await eventually(lambda: later.has_feed(worker.instance_id))
    assert len(feed.requests) == 1
    placer.set_instances({worker.instance_id: RuntimeLimits()})
    await eventually(lambda: placer._has_feed(worker.instance_id))
    await within(asyncio.gather(placer.close(), later.close()))


async def test_closing_leaves_no_task(cluster: Cluster) -> None:
    before = asyncio.all_tasks()
    runtime = cluster.runtime()
    config = KvRouterConfig(router_replica_sync=True)
    placer = KvPlacer(runtime, runtime.endpoint(ENDPOINT).id, BLOCK_SIZE, config, "m")
    await cluster.worker()
    await within(placer.close())
    await within(asyncio.gather(*(runtime.close() for runtime in cluster.runtimes)))
    await eventually(lambda: asyncio.all_tasks() <= before)


async def test_prospect_has_no_consequences(cluster: Cluster) -> None:
    hanging = Scripted[Any, Any](answers(FIRST), hang=True)
    cached, other = await cluster.worker(hanging), await cluster.worker()
    router = await cluster.router(KvRouterConfig(), cached, other)
    cached.store(PROMPT[: 2 * BLOCK_SIZE])
    await eventually(lambda: router.knows(cached))
    both = sorted([cached.id, other.id])
    found = await router.placer.prospect(request(), Context(), both)
    assert found == Prospect(cached_tokens=2 * BLOCK_SIZE, waiting_tokens=0)
    assert await router.placer.prospect(request(), Context(), [other.id]) == Prospect(cached_tokens=0, waiting_tokens=0)
    assert await router.placer.prospect(request(), Context(), [12345]) is None
    assert router.idle()

    slow = Scripted[Any, Any](answers(), hang=True)
    third = await cluster.worker(slow)
    router = await cluster.router(KvRouterConfig(), third)
    asking = asyncio.create_task(router.ask(request()))
    await eventually(lambda: slow.open == 1)
    found = await router.placer.prospect(request([9] * 40), Context(), [third.id])
    assert found == Prospect(cached_tokens=0, waiting_tokens=len(PROMPT))
    await cancel(asking)


async def test_prompt_that_is_prefilled_already_goes_by_load(cluster: Cluster) -> None:
    hanging = Scripted[Any, Any](answers(FIRST), hang=True)
    cached, other = await cluster.worker(hanging), await cluster.worker()
    router = await cluster.router(KvRouterConfig(), cached, other)
    cached.store(PROMPT)
    await eventually(lambda: router.knows(cached))
    asking = asyncio.create_task(router.ask(request(PROMPT)))
    await eventually(lambda: hanging.open == 1)
    handoff = Handoff(engine="test", params=b"")
    report = await router.report(request(PROMPT, handoff=handoff))
    assert (report.worker_id, report.overlap_blocks) == (other.id, 0)
    assert report.no_overlap_reason == "the prompt is prefilled elsewhere, only load counts"
    figures = router.placer.figures
    assert figures.decisions == 2
    assert figures.prompt_tokens == len(PROMPT)  # of the one whose cache was of interest
    await cancel(asking)
