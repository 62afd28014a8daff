"""The router as a service: a client that knows nothing but endpoints asks it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from dynamo.config import parse
from dynamo.errors import ConfigError, InvalidRequestError, ModelNotFoundError, NoInstancesError
from dynamo.llm.kv_router import KvRouter
from dynamo.llm.router_service import RouterConfig, RouterService
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.model_card import RuntimeLimits
from dynamo.protocols.reservations import Reserve
from dynamo.protocols.routing import BestWorkerRequest, PotentialLoad, RoutingReport
from dynamo.router.config import KvRouterConfig
from dynamo.router.publisher import KvEventPublisher
from dynamo.router.reservations import reservations_endpoint
from dynamo.runtime import Context, DistributedRuntime, RuntimeConfig
from dynamo.runtime.handler import closing
from dynamo.runtime.instance import EndpointId
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted, answers
from dynamo.tokens import token_array

WORKERS = "test.backend.generate"
PROMPT = list(range(10))
FIRST = LLMEngineOutput(token_ids=[1], cached_tokens=0)
DONE = LLMEngineOutput(token_ids=[2], finish_reason=FinishReason.STOP)


@dataclass(slots=True, kw_only=True)
class Setting:
    router: KvRouter
    service: RouterService
    client: DistributedRuntime
    worker: DistributedRuntime
    engine: Scripted[Any, Any]

    async def ask(self, endpoint: str, request: Any, context: Context | None = None) -> list[Any]:
        """What the service's endpoint answers."""
        client = await self.client.endpoint(f"test.router.{endpoint}").client()
        async with closing(await client.generate(request, annotated=False, context=context)) as stream:
            return [item async for item in stream]

    async def best_worker(self, **fields: Any) -> RoutingReport:
        [report] = await self.ask("best_worker", {"token_ids": PROMPT} | fields)
        return msgspec.convert(report, RoutingReport)

    def load(self) -> tuple[int, int]:
        """The only worker's tokens to prefill and blocks in use."""
        [figures] = self.router.placer.worker_figures()
        return figures.prefill_tokens, figures.blocks


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    """A router of one worker whose cache has two blocks of PROMPT."""
    router_runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    worker, client = router_runtime.sibling(), router_runtime.sibling()
    engine = Scripted[Any, Any](answers(FIRST, DONE))
    events = KvEventPublisher(worker.endpoint(WORKERS), kv_block_size=4)
    events.publish_stored(PROMPT[:8], [4, 4], [71, 72])
    await events.start()
    await worker.endpoint(WORKERS).start(engine, request_type=PreprocessedRequest)
    router = KvRouter(router_runtime.endpoint(WORKERS), 4, KvRouterConfig(router_queue_threshold=0))
    service = RouterService(router)
    await service.start(router_runtime, "test")
    await eventually(lambda: len(router.dump_events()) == 1)
    yield Setting(router=router, service=service, client=client, worker=worker, engine=engine)
    await within(service.close())
    await within(router_runtime.close(graceful=False))


async def test_best_worker_and_its_reason(setting: Setting) -> None:
    report = await setting.best_worker()
    assert (report.mode, report.worker_id, report.dp_rank) == ("kv", setting.worker.instance_id, 0)
    assert (report.block_size, report.prompt_blocks, report.overlap_blocks) == (4, 2, 2)
    assert [candidate.device_blocks for candidate in report.candidates] == [2]
    assert (await setting.best_worker(cache_salt="x")).overlap_blocks == 0
    assert (await setting.best_worker(lora_name="x")).overlap_blocks == 0
    assert setting.load() == (0, 0)


async def test_the_life_of_a_request_that_the_client_sends_itself(setting: Setting) -> None:
    await setting.best_worker(request_id="a")
    assert setting.load() == (2, 3)
    assert await setting.ask("mark_prefill_complete", {"request_id": "a"}) == [True]
    assert setting.load() == (0, 3)
    assert await setting.ask("free", {"request_id": "a"}) == [True]
    assert setting.load() == (0, 0)
    assert await setting.ask("free", {"request_id": "a"}) == [True]


async def test_generate(setting: Setting) -> None:
    request = PreprocessedRequest(model="m", token_ids=token_array(PROMPT), explain_routing=True)
    first, last = await setting.ask("generate", request)
    assert first["token_ids"] == [1]
    assert first["worker_id"] == [setting.worker.instance_id, 0]
    assert first["routing"]["overlap_blocks"] == 2
    assert last["finish_reason"] == "stop"
    assert setting.load() == (0, 0)


async def test_client_that_leaves_ends_the_work_behind(setting: Setting) -> None:
    setting.engine._hang = True
    request = PreprocessedRequest(model="m", token_ids=token_array(PROMPT))
    client = await setting.client.endpoint("test.router.generate").client()
    stream = await client.generate(request, annotated=False)
    await within(anext(stream))
    await stream.aclose()
    await eventually(lambda: setting.engine.open == 0 and setting.load() == (0, 0))


async def test_potential_loads(setting: Setting) -> None:
    [loads] = await setting.ask("get_potential_loads", BestWorkerRequest(token_ids=token_array(PROMPT)))
    assert msgspec.convert(loads, list[PotentialLoad]) == [
        PotentialLoad(
            worker_id=setting.worker.instance_id, dp_rank=0, potential_prefill_tokens=2, potential_decode_blocks=3
        )
    ]
    salted = BestWorkerRequest(token_ids=token_array(PROMPT), cache_salt="x")
    [[load]] = await setting.ask("get_potential_loads", salted)
    assert load["potential_prefill_tokens"] == 10


@pytest.mark.parametrize(
    ("endpoint", "request_"),
    [
        ("best_worker", {}),
        ("best_worker", {"token_ids": [-1]}),
        ("best_worker", {"token_ids": ["x"]}),
        ("best_worker", {"token_ids": PROMPT, "request_id": 5}),
        ("best_worker", None),
        ("free", {}),
        ("mark_prefill_complete", {"request_id": None}),
        ("generate", {"token_ids": PROMPT}),
        ("get_potential_loads", 7),
    ],
)
async def test_what_makes_no_sense(setting: Setting, endpoint: str, request_: Any) -> None:
    with pytest.raises(InvalidRequestError):
        await within(setting.ask(endpoint, request_))


async def test_request_id_in_use(setting: Setting) -> None:
    await setting.best_worker(request_id="a")
    with pytest.raises(InvalidRequestError, match="'a' is in use"):
        await setting.best_worker(request_id="a")


async def test_no_worker_any_more(setting: Setting) -> None:
    await within(setting.worker.close())
    await eventually(lambda: not list(setting.router.placer.worker_figures()))
    for endpoint in ("best_worker", "get_potential_loads"):
        with pytest.raises(NoInstancesError):
            await setting.ask(endpoint, {"token_ids": PROMPT})


async def test_another_router_takes_over(setting: Setting) -> None:
    """What the former has sent is not counted any more, and its reservations end."""
    reserve = Reserve(request_id="r", token_ids=token_array(PROMPT), instances=[setting.worker.instance_id])
    client = setting.client.client(reservations_endpoint(EndpointId.parse(WORKERS), ""), RoutingReport | None)
    stream = await client.generate(reserve, annotated=False)
    assert await within(anext(stream)) is not None
    other = KvRouter(setting.router.endpoint, 2, KvRouterConfig(use_kv_events=False))
    await within(setting.service.replace(other))
    with pytest.raises(StopAsyncIteration):
        await within(anext(stream))
    setting.router = other
    assert setting.load() == (0, 0)
    assert (await setting.best_worker()).prompt_blocks == 5
    assert len(await setting.ask("generate", PreprocessedRequest(model="m", token_ids=token_array(PROMPT)))) == 2


async def test_requests_for_another_model(setting: Setting) -> None:
    """Routers of several models may serve in one namespace, where a client finds any of them."""
    await within(setting.service.replace(KvRouter(setting.router.endpoint, 4, model_name="m")))
    request = PreprocessedRequest(model="other", token_ids=token_array(PROMPT))
    with pytest.raises(ModelNotFoundError, match="this router is for 'm', not 'other'"):
        await within(setting.ask("generate", request))


class TestWaiting:
    """The worker has told how much it takes at once, and is busy."""

    @pytest.fixture
    async def waiting(self, setting: Setting) -> AsyncIterator[asyncio.Task[RoutingReport]]:
        limits = RuntimeLimits(kv_block_size=4, max_num_batched_tokens=1)
        setting.router.placer.set_instances({setting.worker.instance_id: limits})
        await setting.best_worker(request_id="a")
        task = asyncio.create_task(setting.best_worker(request_id="b"))
        await eventually(lambda: setting.router.placer.scheduler.queued == 1)
        yield task
        task.cancel()
        await within(asyncio.wait([task]))
        await eventually(lambda: setting.router.placer.scheduler.queued == 0)

    async def test_turn_comes(self, setting: Setting, waiting: asyncio.Task[RoutingReport]) -> None:
        await setting.ask("mark_prefill_complete", {"request_id": "a"})
        assert (await within(waiting)).queued_ms > 0

    async def test_client_that_waits_and_leaves(self, setting: Setting, waiting: asyncio.Task[RoutingReport]) -> None:
        waiting.cancel()
        await eventually(lambda: setting.router.placer.scheduler.queued == 0)
        await setting.ask("free", {"request_id": "a"})
        assert setting.load() == (0, 0)


def test_command_line() -> None:
    arguments = ["--endpoint", "dyn://prod.fast.generate", "--router-temperature", "0.5", "--no-router-kv-events"]
    config = parse(RouterConfig, arguments, prog="test")
    assert str(config.endpoint_id()) == "prod.fast.generate"
    assert (config.kv_router.router_temperature, config.kv_router.use_kv_events) == (0.5, False)
    assert str(parse(RouterConfig, ["--namespace", "a"], prog="test").endpoint_id()) == "a.backend.generate"
    with pytest.raises(ConfigError):
        parse(RouterConfig, ["--endpoint", "x"], prog="test").endpoint_id()
