"""Routing by a router service: both ends of it, over endpoints, and what becomes of requests when the service fails."""

import asyncio
import random
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dynamo.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    NoInstancesError,
    OverloadedError,
    RequestCancelledError,
)
from dynamo.protocols.disagg import Handoff
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, WorkerId
from dynamo.protocols.model_card import RuntimeLimits
from dynamo.protocols.reservations import Prefilled, Reserve
from dynamo.protocols.routing import Prospect, RoutingReport
from dynamo.router import remote_placer
from dynamo.router.config import KvRouterConfig
from dynamo.router.kv_placer import KvPlacer
from dynamo.router.push_router import PushRouter
from dynamo.router.remote_placer import RemotePlacer
from dynamo.router.reservations import Reservations, reservations_endpoint
from dynamo.runtime import Context, DistributedRuntime, RuntimeConfig
from dynamo.runtime.component import Endpoint
from dynamo.runtime.distributed import SharedParts
from dynamo.runtime.handler import closing
from dynamo.runtime.instance import EndpointId
from dynamo.runtime.request_plane.base import Channel
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted, answers
from dynamo.testing.stages import outputs_of, reading
from dynamo.tokens import token_array

WORKERS = EndpointId("test", "backend", "generate")
PLACES = reservations_endpoint(WORKERS, "m")
BLOCK_SIZE = 4
PROMPT = list(range(42))
FIRST = LLMEngineOutput(token_ids=[1], cached_tokens=8)
DONE = LLMEngineOutput(token_ids=[2], finish_reason=FinishReason.STOP)
QUEUEING = KvRouterConfig(router_queue_threshold=0, router_queue_size=1)


def request(tokens: list[int] = PROMPT, *, explain: bool = True, **fields: Any) -> PreprocessedRequest:
    return PreprocessedRequest(model="m", token_ids=token_array(tokens), explain_routing=explain, **fields)


@dataclass(slots=True, kw_only=True)
class Service:
    runtime: DistributedRuntime
    placer: KvPlacer

    @property
    def load(self) -> dict[int, tuple[int, int]]:
        """By worker: tokens to prefill, blocks in use."""
        return {
            figures.instance_id: (figures.prefill_tokens, figures.blocks) for figures in self.placer.worker_figures()
        }

    @property
    def idle(self) -> bool:
        return not self.placer.scheduler.queued and not any(sum(load) for load in self.load.values())


@dataclass(slots=True, kw_only=True)
class Frontend:
    runtime: DistributedRuntime
    placer: RemotePlacer
    push: PushRouter

    async def report(self, asked: PreprocessedRequest | None = None) -> RoutingReport | None:
        first, *_ = await outputs_of(self.push.generate, asked or request())
        return first.routing


@dataclass(slots=True)
class World:
    """Workers whose engines answer FIRST and then hang, or DONE; services and frontends for them."""

    config: RuntimeConfig
    shared: SharedParts = field(default_factory=SharedParts)
    runtimes: list[DistributedRuntime] = field(default_factory=list)
    engines: dict[int, Scripted[Any, Any]] = field(default_factory=dict)  # by instance
    placers: list[KvPlacer | RemotePlacer] = field(default_factory=list)

    def runtime(self) -> DistributedRuntime:
        self.runtimes.append(DistributedRuntime(config=self.config, shared=self.shared))
        return self.runtimes[-1]

    async def worker(self, *, hang: bool = False) -> int:
        runtime = self.runtime()
        engine = Scripted[Any, Any](answers(FIRST) if hang else answers(FIRST, DONE), hang=hang)
        await runtime.endpoint(str(WORKERS)).start(engine, request_type=PreprocessedRequest)
        self.engines[runtime.instance_id] = engine
        return runtime.instance_id

    async def service(self, config: KvRouterConfig | None = None, *, sign_of_life_s: float = 1) -> Service:
        """Knows all workers that there are."""
        runtime = self.runtime()
        placer = KvPlacer(runtime, WORKERS, BLOCK_SIZE, config or KvRouterConfig(use_kv_events=False), "m")
        placer.set_instances(dict.fromkeys(self.engines, RuntimeLimits(max_num_batched_tokens=8)))
        await Reservations(placer, sign_of_life_s).start(Endpoint(runtime, PLACES))
        self.placers.append(placer)
        return Service(runtime=runtime, placer=placer)

    async def scripted_service(self, *items: Any, hang: bool = False) -> Scripted[Any, Any]:
        """Answers whatever it is asked with these items."""
        service = Scripted[Any, Any](answers(*items), hang=hang)
        await Endpoint(self.runtime(), PLACES).start(service)
        return service

    async def frontend(self, services: int = 1) -> Frontend:
        """Knows all workers, and so many services."""
        runtime = self.runtime()
        client = runtime.client(WORKERS)
        placer = RemotePlacer(runtime, WORKERS, "m", random.Random(1))
        self.placers.append(placer)
        await eventually(lambda: set(self.engines) <= set(client.instance_ids()))
        placer.set_instances(self.engines)
        await eventually(lambda: len(placer._client.instance_ids()) == services)
        return Frontend(runtime=runtime, placer=placer, push=PushRouter(client, placer, self.engines.__contains__))


@pytest.fixture(params=["mem+inproc", "file+tcp"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    discovery, plane = request.param.split("+")
    world = World(RuntimeConfig(discovery_backend=discovery, request_plane=plane, file_kv=str(tmp_path / "kv")))
    yield world
    for placer in world.placers:
        await within(placer.close())
    await within(asyncio.gather(*(runtime.close(graceful=False) for runtime in world.runtimes)))


async def test_several_frontends_ask_one_service(world: World) -> None:
    workers = {await world.worker() for _ in range(3)}
    service = await world.service()
    frontends = [await world.frontend() for _ in range(2)]
    first = await frontends[0].report()
    assert first is not None
    assert (first.mode, first.overlap_blocks, first.prompt_blocks) == ("kv", 0, 10)
    assert {candidate.worker_id for candidate in first.candidates} == workers
    for frontend in frontends:
        later = await frontend.report(request([*PROMPT, 7]))
        assert later is not None
        assert (later.worker_id, later.overlap_blocks) == (first.worker_id, 10)
    await eventually(lambda: service.idle)
    assert service.placer.figures.prompt_tokens == 42 + 43 + 43
    assert service.placer.figures.cached_tokens == 3 * 8


async def test_reasons_are_for_those_who_ask(world: World) -> None:
    await world.worker()
    await world.service()
    frontend = await world.frontend()
    assert await frontend.report(request(explain=False)) is None


async def test_reasons_are_in_the_log_at_debug_level(world: World, caplog: pytest.LogCaptureFixture) -> None:
    worker = await world.worker()
    await world.service()
    frontend = await world.frontend()
    context = Context()
    with caplog.at_level("DEBUG", "dynamo.router"):
        await outputs_of(frontend.push.generate, request(explain=False), context)
    [line] = [record.getMessage() for record in caplog.records if record.msg.startswith("request ")]
    assert line.startswith(f"request {context.id()}: RoutingReport(")
    assert f"candidates=[CandidateReport(worker_id={worker}" in line


async def test_a_request_is_load_until_its_end(world: World) -> None:
    worker = await world.worker(hang=True)
    service = await world.service()
    frontend = await world.frontend()
    async with reading(frontend.push.generate, request()) as reader:
        await reader.until(1)
        await eventually(lambda: service.load == {worker: (0, 11)})
    await eventually(lambda: service.idle)


async def test_siblings_of_a_burst_through_two_frontends_stay_together(world: World) -> None:
    for _ in range(3):
        await world.worker(hang=True)
    service = await world.service()
    frontends = [await world.frontend() for _ in range(2)]
    asking = [asyncio.create_task(outputs_of(frontends[n % 2].push.generate, request([*PROMPT, n]))) for n in range(4)]
    await eventually(lambda: sum(engine.open for engine in world.engines.values()) == 4)
    assert sorted(engine.open for engine in world.engines.values()) == [0, 0, 4]
    for task in asking:
        task.cancel()
    await within(asyncio.wait(asking))
    await eventually(lambda: service.idle)


async def test_a_frontend_that_dies_takes_its_requests_with_it(world: World) -> None:
    worker = await world.worker(hang=True)
    service = await world.service()
    frontend = await world.frontend()
    reserve = Reserve(request_id="x", token_ids=token_array(PROMPT), instances=[worker])
    client = frontend.runtime.client(PLACES, RoutingReport)
    stream = await client.direct(reserve, service.runtime.instance_id, annotated=False)
    assert (await within(anext(stream))).worker_id == worker
    assert service.load == {worker: (42, 11)}
    await within(frontend.runtime.close(graceful=False))
    await eventually(lambda: service.idle)


async def test_the_worker_that_the_client_names(world: World) -> None:
    workers = [await world.worker() for _ in range(3)]
    await world.service()
    frontend = await world.frontend()
    for worker in workers:
        report = await frontend.report(request(target=WorkerId(worker)))
        assert report is not None
        assert report.worker_id == worker


async def test_a_worker_that_failed_is_not_chosen_again(world: World) -> None:
    good, bad = await world.worker(), await world.worker()
    world.engines[bad]._script = answers(ConnectionLostError("no"))
    await world.service()
    frontend = await world.frontend()
    for n in range(4):
        report = await frontend.report(request([100 + n]))
        assert report is not None
        assert report.worker_id == good


class TestWaiting:
    """The only worker is busy: its batch is smaller than the prompt it has to prefill."""

    @pytest.fixture
    async def service(self, world: World) -> Service:
        await world.worker()
        service = await world.service(QUEUEING, sign_of_life_s=0.01)
        service.placer.scheduler.sequences.add(
            "busy", WorkerId(*world.engines), prompt_tokens=99, prefill_tokens=99, now_s=1e9
        )
        return service

    async def test_turn_comes_however_late(
        self, world: World, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote_placer, "_SILENCE_MAX_S", 0.2)  # less than the request waits
        frontend = await world.frontend()
        asking = asyncio.create_task(frontend.report())
        with pytest.raises(TimeoutError):
            await within(asyncio.shield(asking), 0.5)
        assert service.placer.scheduler.queued == 1
        service.placer.free("busy")
        report = await within(asking)
        assert report is not None
        assert report.queued_ms > 200

    @pytest.mark.parametrize("late", [False, True])
    async def test_worker_that_comes_while_the_request_waits(self, world: World, service: Service, late: bool) -> None:
        frontend = await world.frontend()
        waiting = asyncio.create_task(frontend.report())
        await eventually(lambda: service.placer.scheduler.queued == 1)
        newcomer = await world.worker()
        await eventually(lambda: newcomer in frontend.push.workers())
        if not late:  # the frontend hears of it first
            frontend.placer.set_instances(world.engines)
        service.placer.set_instances(dict.fromkeys(world.engines, RuntimeLimits(max_num_batched_tokens=8)))
        if late:
            await eventually(lambda: service.placer.scheduler.sequences.requests == 2)
            frontend.placer.set_instances(world.engines)
        report = await within(waiting)
        assert report is not None
        assert report.worker_id == newcomer
        await eventually(lambda: service.load[newcomer] == (0, 0))

    async def test_closing_ends_the_wait_for_news_of_a_worker(
        self, world: World, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote_placer, "_NEWS_MAX_S", 60)
        frontend = await world.frontend()
        waiting = asyncio.create_task(frontend.report())
        await eventually(lambda: service.placer.scheduler.queued == 1)
        await world.worker()
        service.placer.set_instances(dict.fromkeys(world.engines, RuntimeLimits(max_num_batched_tokens=8)))
        await eventually(lambda: service.placer.scheduler.sequences.requests == 2)
        await frontend.placer.close()
        assert await within(waiting) is None  # served, by a worker that is known here
        await eventually(lambda: service.placer.scheduler.sequences.requests == 1)

    async def test_another_worker_is_not_the_one_that_the_client_names(self, world: World, service: Service) -> None:
        frontend = await world.frontend()
        [named] = world.engines
        asking = asyncio.create_task(frontend.report(request(target=WorkerId(named))))
        await eventually(lambda: service.placer.scheduler.queued == 1)
        await world.worker()
        service.placer.set_instances(dict.fromkeys(world.engines, RuntimeLimits()))
        report = await within(asking)
        assert report is not None
        assert report.worker_id == named

    async def test_full_queue_is_the_answer(self, world: World, service: Service) -> None:
        frontend = await world.frontend()
        waiting = asyncio.create_task(frontend.report())
        await eventually(lambda: service.placer.scheduler.queued == 1)
        with pytest.raises(OverloadedError):
            await within(frontend.report())
        waiting.cancel()
        await within(asyncio.wait([waiting]))
        await eventually(lambda: service.placer.scheduler.queued == 0)

    async def test_client_that_leaves(self, world: World, service: Service) -> None:
        frontend = await world.frontend()
        context = Context()
        waiting = asyncio.create_task(outputs_of(frontend.push.generate, request(), context))
        await eventually(lambda: service.placer.scheduler.queued == 1)
        context.kill()
        with pytest.raises(RequestCancelledError):
            await within(waiting)
        await eventually(lambda: service.placer.scheduler.queued == 0)

    async def test_deadline(self, world: World, service: Service) -> None:
        frontend = await world.frontend()
        context = Context(deadline_s=asyncio.get_running_loop().time() + 0.2)
        with pytest.raises(DeadlineExceededError):
            await within(outputs_of(frontend.push.generate, request(), context))
        await eventually(lambda: service.placer.scheduler.queued == 0)

    async def test_shutdown_of_the_service(self, world: World, service: Service) -> None:
        frontend = await world.frontend()
        waiting = asyncio.create_task(frontend.report())
        await eventually(lambda: service.placer.scheduler.queued == 1)
        await within(service.placer.close())
        assert await within(waiting) is None  # served, by whom this frontend has chosen


async def test_service_that_ends_in_order_has_no_reservations_to_wait_for(world: World) -> None:
    await world.worker(hang=True)
    service = await world.service()
    frontend = await world.frontend()
    async with reading(frontend.push.generate, request()) as reader:
        await reader.until(1)
        await within(service.runtime.close(graceful=True), 5)
        assert not reader.task.done()


async def test_without_a_service_the_least_loaded(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        await world.worker(hang=True)
    frontend = await world.frontend(services=0)
    async with reading(frontend.push.generate, request()) as one, reading(frontend.push.generate, request()) as two:
        await one.until(1)
        await two.until(1)
        assert [engine.open for engine in world.engines.values()] == [1, 1]
    assert caplog.text.count("no router service for 'm'") == 1


async def test_service_comes_and_goes(world: World, caplog: pytest.LogCaptureFixture) -> None:
    worker = await world.worker()
    frontend = await world.frontend(services=0)
    assert await frontend.report() is None
    for _ in range(2):
        service = await world.service()
        only = [service.runtime.instance_id]
        await eventually(lambda: frontend.placer._client.instance_ids() == only)  # noqa: B023 - called at once
        report = await frontend.report()
        assert report is not None
        assert report.worker_id == worker
        await within(service.runtime.close(graceful=False))
        assert await frontend.report() is None
    assert caplog.text.count("no router service for 'm'") == 3


@pytest.mark.parametrize(
    "items",
    [
        (InternalError("a defect"),),
        (NoInstancesError("no worker"),),
        (InvalidRequestError("in use"),),
        (ConnectionLostError("gone"),),
        (),
        ("nonsense",),
        (None, None),
        (RoutingReport(mode="kv", worker_id=1, dp_rank=0, prompt_blocks=0, block_size=4, overlap_blocks=0),),
    ],
    ids=str,
)
async def test_service_that_fails(
    world: World, items: tuple[Any, ...], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_placer, "_NEWS_MAX_S", 0.05)
    await world.worker()
    await world.scripted_service(*items)
    frontend = await world.frontend()
    for _ in range(3):
        assert await within(frontend.report()) is None
    assert caplog.text.count("no router service for 'm'") == 1


async def test_the_next_service_is_asked(world: World) -> None:
    await world.worker()
    await world.scripted_service(InternalError("a defect"))
    await world.service()
    frontend = await world.frontend(services=2)
    for _ in range(4):
        assert await within(frontend.report()) is not None


async def test_services_take_turns(world: World) -> None:
    await world.worker()
    services = [await world.service() for _ in range(2)]
    frontend = await world.frontend(services=2)
    for _ in range(4):
        await frontend.report()
    assert [service.placer.figures.decisions for service in services] == [2, 2]


async def test_sessions_stay_with_one_service(world: World) -> None:
    await world.worker()
    services = [await world.service() for _ in range(3)]
    frontends = [await world.frontend(services=3) for _ in range(2)]
    for frontend in frontends:
        for _ in range(3):
            await frontend.report(request(session_id="mine"))
    assert sorted(service.placer.figures.decisions for service in services) == [0, 0, 6]


async def test_silent_service_costs_one_request_its_time(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_placer, "_SILENCE_MAX_S", 0.1)
    monkeypatch.setattr(remote_placer, "_RETRY_S", 0.01)
    await world.worker()
    silent = await world.scripted_service(hang=True)
    frontend = await world.frontend()
    for _ in range(5):
        assert await within(frontend.report()) is None
    assert sum(isinstance(asked, dict) and "token_ids" in asked for asked in silent.requests) == 1
    silent._hang = False  # it answers again
    await eventually(lambda: not frontend.placer._silent)
    await within(frontend.report())
    assert sum(isinstance(asked, dict) and "token_ids" in asked for asked in silent.requests) == 2
    await eventually(lambda: silent.open == 0)


async def test_service_that_takes_no_connection_costs_one_request_its_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a host that has vanished without a word."""
    monkeypatch.setattr(remote_placer, "_SILENCE_MAX_S", 0.1)
    await world.worker()
    await world.service()
    frontend = await world.frontend()
    tried = 0

    async def connect(instance_id: int) -> Channel:
        nonlocal tried
        tried += 1
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(frontend.placer._client, "_connect", connect)
    for _ in range(3):
        assert await within(frontend.report()) is None
    assert tried == 1


class TestService:
    """What it says to callers that are not as they should be."""

    @pytest.fixture
    async def worker(self, world: World) -> int:
        return await world.worker()

    async def ask(self, world: World, message: Any) -> list[Any]:
        client = world.runtime().client(PLACES)
        async with closing(await client.generate(message, annotated=False)) as stream:
            return [item async for item in stream]

    @pytest.mark.parametrize(
        "message",
        [
            None,
            {},
            {"type": 7},
            {"type": 0, "request_id": "x", "token_ids": [-1], "instances": []},
            {"type": 0, "request_id": "x", "token_ids": [1], "instances": ["x"]},
            {"type": 0, "token_ids": [1], "instances": []},
            {"type": 1},
        ],
        ids=str,
    )
    async def test_nonsense(self, world: World, worker: int, message: Any) -> None:
        service = await world.service()
        with pytest.raises(InvalidRequestError):
            await within(self.ask(world, message))
        assert service.idle

    async def test_no_such_worker(self, world: World, worker: int) -> None:
        service = await world.service()
        with pytest.raises(NoInstancesError):
            await within(self.ask(world, Reserve(request_id="x", token_ids=token_array([1]), instances=[worker + 1])))
        assert service.idle

    async def test_id_in_use(self, world: World, worker: int) -> None:
        service = await world.service()
        reserve = Reserve(request_id="x", token_ids=token_array(PROMPT), instances=[worker])
        client = world.runtime().client(PLACES, RoutingReport)
        stream = await client.generate(reserve, annotated=False)
        await within(anext(stream))
        with pytest.raises(InvalidRequestError, match="'x' is in use"):
            await within(self.ask(world, reserve))
        assert service.load == {worker: (42, 11)}
        await stream.aclose()
        await eventually(lambda: service.idle)

    async def test_reservation_that_lasts_keeps_no_prompt(self, world: World, worker: int) -> None:
        reservations = Reservations((await world.service()).placer)
        reserve = Reserve(request_id="x", token_ids=token_array(PROMPT), instances=[worker])
        prompt = weakref.ref(reserve.token_ids)
        stream = reservations.serve(reserve, Context())
        del reserve
        async with closing(stream):
            await within(anext(stream))
            await eventually(lambda: prompt() is None)

    async def test_prefilled_that_nobody_knows(self, world: World, worker: int) -> None:
        service = await world.service()
        assert await within(self.ask(world, Prefilled(request_id="?", cached_tokens=5))) == []
        assert service.placer.figures.prompt_tokens == 0


async def test_prospect_by_a_service(world: World) -> None:
    worker = await world.worker()
    service, frontend = await world.service(), await world.frontend()
    asked = request()
    assert await frontend.placer.prospect(asked, Context(), [worker]) == Prospect(cached_tokens=0, waiting_tokens=0)
    await frontend.report()
    full = len(PROMPT) // BLOCK_SIZE * BLOCK_SIZE
    assert await frontend.placer.prospect(asked, Context(), [worker]) == Prospect(cached_tokens=full, waiting_tokens=0)
    assert service.idle
    assert await frontend.placer.prospect(asked, Context(), [12345]) is None


async def test_no_prospect_without_a_service(world: World) -> None:
    worker = await world.worker()
    frontend = await world.frontend(services=0)
    assert await frontend.placer.prospect(request(), Context(), [worker]) is None


async def test_service_hears_that_a_prompt_is_prefilled(world: World) -> None:
    """It is load, but nothing to prefill."""
    await world.worker(hang=True)
    await world.service()
    frontend = await world.frontend()
    prefilled = request(handoff=Handoff(engine="test", params=b""))
    frontend.push._fetches = lambda _: True
    async with reading(frontend.push.generate, prefilled) as reader:
        await reader.until(1)
        assert reader.items[0].routing is not None
        assert reader.items[0].routing.no_overlap_reason == "the prompt is prefilled elsewhere, only load counts"


async def test_looks_and_reservations_take_the_same_turns(world: World) -> None:
    """Or a service would decide by a load that another one has."""
    worker = await world.worker()
    report = RoutingReport(mode="kv", worker_id=worker, dp_rank=0, prompt_blocks=1, block_size=4, overlap_blocks=0)
    services = []
    for _ in range(2):
        service = Scripted[Any, Any](
            lambda asked: [Prospect(cached_tokens=0, waiting_tokens=0)] if is_look(asked) else [report]
        )
        await Endpoint(world.runtime(), PLACES).start(service)
        services.append(service)
    frontend = await world.frontend(services=2)
    for _ in range(4):
        assert await frontend.placer.prospect(request(), Context(), [worker]) is not None
        await frontend.report()
    for service in services:
        assert Counter(map(is_look, service.requests))[True] == 2


async def test_a_service_that_is_silent_to_a_look_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_placer, "_SILENCE_MAX_S", 0.05)
    worker = await world.worker()
    hanging = await world.scripted_service(hang=True)
    frontend = await world.frontend()
    for _ in range(3):
        assert await frontend.placer.prospect(request(), Context(), [worker]) is None
    assert Counter(map(is_look, hanging.requests))[True] == 1


def is_look(message: dict[str, Any]) -> bool:
    """Of a service that was given no request type."""
    return bool(message["type"] == 2)


async def test_a_look_ends_with_the_request(world: World) -> None:
    await world.worker()
    hanging = await world.scripted_service(hang=True)
    frontend = await world.frontend()
    context = Context(deadline_s=asyncio.get_running_loop().time() + 0.05)
    with pytest.raises(DeadlineExceededError):
        await frontend.placer.prospect(request(), context, sorted(world.engines))
    await eventually(lambda: hanging.open == 0)
