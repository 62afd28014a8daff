"""The KV router as a library, over workers that are there."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from dynamo.errors import (
    ConfigError,
    DeadlineExceededError,
    InvalidRequestError,
    NoInstancesError,
    RequestCancelledError,
)
from dynamo.llm.kv_router import KvRouter
from dynamo.llm.register import ModelEntry
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, StopConditions, WorkerId
from dynamo.protocols.kv_events import BlockStored
from dynamo.protocols.model_card import ModelCard, ModelInput, RuntimeLimits
from dynamo.protocols.routing import PotentialLoad
from dynamo.router.config import KvRouterConfig
from dynamo.router.publisher import KvEventPublisher
from dynamo.runtime import Context, DistributedRuntime, RuntimeConfig
from dynamo.runtime.distributed import SharedParts
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted, answers
from dynamo.tokens import hashes_from_bytes, sequence_hashes, token_array

ENDPOINT = "test.backend.generate"
BLOCK_SIZE = 4
PROMPT = list(range(10))
FIRST = LLMEngineOutput(token_ids=[1], cached_tokens=0)
DONE = LLMEngineOutput(token_ids=[2], finish_reason=FinishReason.STOP)


@dataclass(slots=True, kw_only=True)
class Worker:
    runtime: DistributedRuntime
    events: KvEventPublisher
    engine: Scripted[Any, Any]

    @property
    def id(self) -> int:
        return self.runtime.instance_id


@dataclass(slots=True)
class Fleet:
    config: RuntimeConfig
    shared: SharedParts = field(default_factory=SharedParts)
    runtimes: list[DistributedRuntime] = field(default_factory=list)
    routers: list[KvRouter] = field(default_factory=list)

    def runtime(self) -> DistributedRuntime:
        self.runtimes.append(DistributedRuntime(config=self.config, shared=self.shared))
        return self.runtimes[-1]

    async def worker(
        self, *names: str, block_size: int | None = BLOCK_SIZE, content_hash: str = "", **limits: int
    ) -> Worker:
        """Serves ENDPOINT and announces models of these names."""
        runtime = self.runtime()
        endpoint = runtime.endpoint(ENDPOINT)
        events = KvEventPublisher(endpoint, kv_block_size=block_size or BLOCK_SIZE)
        engine = Scripted[Any, Any](answers(FIRST, DONE))
        await events.start()
        await endpoint.start(engine, request_type=PreprocessedRequest)
        for name in names:
            card = ModelCard(
                name=name,
                model_type=1,
                model_input=ModelInput.Tokens,
                content_hash=content_hash,
                limits=RuntimeLimits(kv_block_size=block_size, **limits),
            )
            entry = ModelEntry(instance_id=runtime.instance_id, endpoint=endpoint.id, card=card)
            await runtime.register(entry.key, entry.encode())
        return Worker(runtime=runtime, events=events, engine=engine)

    async def router(self, *workers: Worker, model_name: str = "", **config: Any) -> KvRouter:
        """One that has heard of these workers and of nobody else."""
        endpoint = self.runtime().endpoint(ENDPOINT)
        router = KvRouter(endpoint, BLOCK_SIZE, KvRouterConfig(**config), model_name=model_name)
        await self.heard_of(router, *workers)
        return router

    async def heard_of(self, router: KvRouter, *workers: Worker) -> None:
        self.routers.append(router)
        expected = {worker.id for worker in workers}
        await eventually(lambda: known(router) == expected)
        await eventually(lambda: all(map(router.placer._has_feed, expected)))


def known(router: KvRouter) -> set[int]:
    return {worker.instance_id for worker in router.placer.scheduler.workers()}


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet(RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    yield fleet
    for router in fleet.routers:
        await within(router.close())
    await within(asyncio.gather(*(runtime.close(graceful=False) for runtime in fleet.runtimes)))


def load(router: KvRouter) -> dict[int, tuple[int, int]]:
    """Of each instance: tokens to prefill, blocks in use."""
    return {figures.instance_id: (figures.prefill_tokens, figures.blocks) for figures in router.placer.worker_figures()}


async def stored(router: KvRouter, worker: Worker, tokens: list[int], **of: Any) -> None:
    """The worker's cache holds two blocks, and the router knows."""
    before = len(router.placer.indexer.tree)
    worker.events.publish_stored(tokens[:8], [4, 4], [71, 72], **of)
    await eventually(lambda: len(router.placer.indexer.tree) == before + 2)


class TestBestWorker:
    async def test_a_look_has_no_consequences(self, fleet: Fleet) -> None:
        workers = [await fleet.worker() for _ in range(3)]
        router = await fleet.router(*workers)
        await stored(router, workers[1], PROMPT)
        for decision in (await router.best_worker(PROMPT), router.look(PROMPT)):
            assert decision.worker == WorkerId(workers[1].id)
            assert (decision.overlap.device, decision.prompt_blocks, len(decision.candidates)) == (2, 2, 3)
        assert load(router) == {worker.id: (0, 0) for worker in workers}

    async def test_with_an_id_it_counts_until_it_is_freed(self, fleet: Fleet) -> None:
        worker = await fleet.worker()
        router = await fleet.router(worker)
        await router.best_worker(PROMPT, request_id="a")
        assert load(router) == {worker.id: (10, 3)}
        router.mark_prefill_complete("a")
        router.mark_prefill_complete("a")
        assert load(router) == {worker.id: (0, 3)}
        router.free("a")
        router.free("a")
        assert load(router) == {worker.id: (0, 0)}
        await router.best_worker(PROMPT, request_id="a")  # which is free again

    async def test_ids_that_nobody_has_given(self, fleet: Fleet) -> None:
        router = await fleet.router(await fleet.worker(), router_replica_sync=True)
        router.mark_prefill_complete("?")
        router.free("?")

    async def test_ids_are_apart_from_those_of_generate(self, fleet: Fleet) -> None:
        worker = await fleet.worker()
        worker.engine._hang = True
        router = await fleet.router(worker)
        outputs = await router.generate(PROMPT, "m")
        await within(anext(outputs))
        for number in range(3):
            await router.best_worker(PROMPT, request_id=str(number))
            router.free(str(number))
        assert load(router) == {worker.id: (0, 3)}
        await outputs.aclose()  # type: ignore[attr-defined]

    async def test_id_in_use(self, fleet: Fleet) -> None:
        router = await fleet.router(
            await fleet.worker("m", max_num_batched_tokens=4), router_queue_threshold=1, model_name="m"
        )
        await router.best_worker(PROMPT, request_id="a")
        with pytest.raises(ValueError, match="'a' is in use"):
            await router.best_worker(PROMPT, request_id="a")
        waiting = asyncio.create_task(router.best_worker(PROMPT, request_id="b"))
        await eventually(lambda: router.placer.scheduler.queued == 1)
        with pytest.raises(ValueError, match="'b' is in use"):
            await within(router.best_worker(PROMPT, request_id="b"))
        router.free("a")
        await within(waiting)

    async def test_waiting_ends_with_the_context(self, fleet: Fleet) -> None:
        router = await fleet.router(
            await fleet.worker("m", max_num_batched_tokens=4), router_queue_threshold=1, model_name="m"
        )
        await router.best_worker(PROMPT, request_id="a")
        deadline_s = asyncio.get_running_loop().time() + 0.01
        with pytest.raises(DeadlineExceededError):
            await within(router.best_worker(PROMPT, request_id="b", context=Context(deadline_s=deadline_s)))
        context = Context()
        waiting = asyncio.create_task(router.best_worker(PROMPT, request_id="b", context=context))
        await eventually(lambda: router.placer.scheduler.queued == 1)
        context.stop_generating()
        with pytest.raises(RequestCancelledError):
            await within(waiting)
        waiting = asyncio.create_task(router.best_worker(PROMPT, request_id="b"))
        await eventually(lambda: router.placer.scheduler.queued == 1)
        router.free("b")
        with pytest.raises(RequestCancelledError):
            await within(waiting)

    async def test_closing_ends_the_wait(self, fleet: Fleet) -> None:
        worker = await fleet.worker("m", max_num_batched_tokens=4)
        router = await fleet.router(worker, router_queue_threshold=1, model_name="m")
        await router.best_worker(PROMPT, request_id="a")
        waiting = asyncio.create_task(router.best_worker(PROMPT, request_id="b"))
        await eventually(lambda: router.placer.scheduler.queued == 1)
        await within(router.close())
        with pytest.raises(NoInstancesError):
            await within(waiting)

    async def test_nobody_is_there(self, fleet: Fleet) -> None:
        router = await fleet.router()
        with pytest.raises(NoInstancesError):
            await router.best_worker(PROMPT)
        with pytest.raises(NoInstancesError):
            await router.best_worker(PROMPT, request_id="a")
        with pytest.raises(NoInstancesError):
            router.get_potential_loads(PROMPT)
        await router.close()
        with pytest.raises(NoInstancesError):
            await router.best_worker(PROMPT)

    @pytest.mark.parametrize("tokens", [[-1], [2**32]])
    async def test_what_is_no_token(self, fleet: Fleet, tokens: list[int]) -> None:
        router = await fleet.router(await fleet.worker())
        with pytest.raises(OverflowError):
            await router.best_worker(tokens)

    async def test_empty_prompt(self, fleet: Fleet) -> None:
        decision = await (await fleet.router(await fleet.worker())).best_worker([])
        assert decision.no_overlap_reason == "the prompt has 0 tokens, a block 4"

    async def test_salt_and_adapter(self, fleet: Fleet) -> None:
        worker = await fleet.worker()
        router = await fleet.router(worker)
        await stored(router, worker, PROMPT, lora_name="tuned", cache_salt="mine")
        assert (await router.best_worker(PROMPT)).overlap.total == 0
        assert (await router.best_worker(PROMPT, lora_name="tuned")).overlap.total == 0
        assert (await router.best_worker(PROMPT, lora_name="tuned", cache_salt="mine")).overlap.total == 2

    async def test_a_look_knows_the_session(self, fleet: Fleet) -> None:
        router = await fleet.router(*[await fleet.worker() for _ in range(3)], router_session_affinity="hard")
        first = await router.best_worker(PROMPT, request_id="a", session_id="s")
        for number in range(5):
            assert router.look([99, number], session_id="s").worker == first.worker
            assert (await router.best_worker([98, number], session_id="s")).worker == first.worker

    async def test_sessions_stay(self, fleet: Fleet) -> None:
        router = await fleet.router(
            *[await fleet.worker() for _ in range(3)], router_session_affinity="hard", use_kv_events=True
        )
        first = await router.best_worker(PROMPT, request_id="a", session_id="s")
        for number in range(5):
            later = await router.best_worker([99, number], request_id=f"b{number}", session_id="s")
            assert later.worker == first.worker


class TestGenerate:
    async def test_answer_and_who_gave_it(self, fleet: Fleet) -> None:
        workers = [await fleet.worker() for _ in range(3)]
        router = await fleet.router(*workers)
        await stored(router, workers[2], PROMPT)
        outputs = await router.generate(PROMPT, "m", stop_conditions=StopConditions(max_tokens=2), cache_salt=None)
        first, last = [output async for output in outputs]
        assert (first.token_ids, first.worker_id) == ([1], WorkerId(workers[2].id))
        assert (last.finish_reason, last.worker_id) == (FinishReason.STOP, None)
        [request] = workers[2].engine.requests
        assert (list(request.token_ids), request.model, request.stop_conditions.max_tokens) == (PROMPT, "m", 2)
        assert set(load(router).values()) == {(0, 0)}

    async def test_named_worker_and_rank(self, fleet: Fleet) -> None:
        plain, parallel = await fleet.worker("m"), await fleet.worker("m", data_parallel_size=2)
        router = await fleet.router(plain, parallel)
        assert set(router.placer.scheduler.workers()) == {
            WorkerId(plain.id),
            WorkerId(parallel.id),
            WorkerId(parallel.id, 1),
        }
        for _ in range(3):
            outputs = await router.generate(PROMPT, "m", worker_id=parallel.id, dp_rank=1)
            assert (await anext(outputs)).worker_id == WorkerId(parallel.id, 1)
        assert {request.dp_rank for request in parallel.engine.requests} == {1}

    async def test_unknown_worker(self, fleet: Fleet) -> None:
        router = await fleet.router(await fleet.worker())
        with pytest.raises(InvalidRequestError):
            await anext(await router.generate(PROMPT, "m", worker_id=17))

    async def test_reader_that_leaves(self, fleet: Fleet) -> None:
        worker = await fleet.worker()
        worker.engine._hang = True
        router = await fleet.router(worker)
        outputs = await router.generate(PROMPT, "m")
        await within(anext(outputs))
        assert load(router) == {worker.id: (0, 3)}
        await outputs.aclose()  # type: ignore[attr-defined]
        assert load(router) == {worker.id: (0, 0)}
        await eventually(lambda: worker.engine.open == 0)


class TestWorkers:
    async def test_who_is_there_can_be_chosen_at_once(self, fleet: Fleet) -> None:
        worker = await fleet.worker("m")
        router = KvRouter(fleet.runtime().endpoint(ENDPOINT), BLOCK_SIZE, model_name="m")
        fleet.routers.append(router)
        assert (await router.best_worker(PROMPT)).worker == WorkerId(worker.id)

    async def test_who_comes_and_goes(self, fleet: Fleet) -> None:
        first = await fleet.worker("m")
        router = await fleet.router(first)
        second = await fleet.worker()  # which announces no model
        await fleet.heard_of(router, first, second)
        await stored(router, first, PROMPT)
        await within(first.runtime.close(graceful=False))
        await fleet.heard_of(router, second)
        await eventually(lambda: not router.dump_events())
        assert (await router.best_worker(PROMPT)).worker == WorkerId(second.id)

    async def test_waiting_for_one(self, fleet: Fleet) -> None:
        router = await fleet.router(model_name="m")
        with pytest.raises(TimeoutError):
            await router.wait_for_workers(timeout_s=0.01)
        waiting = asyncio.create_task(router.wait_for_workers(timeout_s=5))
        await fleet.worker("m", block_size=8)  # is none
        worker = await fleet.worker("m")
        assert await within(waiting) == [WorkerId(worker.id)]

    @pytest.mark.parametrize(
        ("names", "block_size", "said"),
        [
            (["m"], 8, "it serves 'm' with KV blocks of 8 tokens, this router is for 'm' with KV blocks of 4 tokens"),
            (["m"], None, "it serves 'm' with KV blocks of unknown size"),
            (["other"], BLOCK_SIZE, "it serves 'other' with KV blocks of 4 tokens"),
        ],
    )
    async def test_unlike_ones_are_refused_once(
        self, fleet: Fleet, names: list[str], block_size: int | None, said: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        good = await fleet.worker("m")
        router = await fleet.router(good, model_name="m")
        unlike = await fleet.worker(*names, block_size=block_size)
        await eventually(lambda: said in caplog.text)
        both = await fleet.worker("other", "m")  # which suffices
        await fleet.heard_of(router, good, both)
        for number in range(4):
            await router.best_worker([number], request_id=str(number))
        assert {instance for instance, (tokens, _) in load(router).items() if tokens} == {good.id, both.id}
        assert caplog.text.count(f"instance {unlike.id:x} gets no requests") == 1
        with pytest.raises(InvalidRequestError):
            await anext(await router.generate(PROMPT, "m", worker_id=unlike.id))

    async def test_nonsense_among_the_announcements(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
        router = await fleet.router(model_name="m")
        await fleet.runtime().register(f"models/test/{ENDPOINT}/1/x", b"?")
        await fleet.heard_of(router, await fleet.worker("m"))
        assert "ignoring the discovery entry" in caplog.text

    async def test_block_size_that_is_none(self, fleet: Fleet) -> None:
        with pytest.raises(ValueError, match="block_size must be at least 1, not 0"):
            KvRouter(fleet.runtime().endpoint(ENDPOINT), 0)


class TestDiscover:
    async def test_block_size_and_model_are_the_first_ones(
        self, fleet: Fleet, caplog: pytest.LogCaptureFixture
    ) -> None:
        discovering = asyncio.create_task(KvRouter.discover(fleet.runtime().endpoint(ENDPOINT)))
        await fleet.worker("echo", block_size=None)
        await eventually(lambda: "'echo' is passed over" in caplog.text)
        first, _ = await fleet.worker("m", block_size=8), await fleet.worker("n", block_size=8)
        router = await within(discovering)
        assert router.block_size == 8
        await fleet.heard_of(router, first)

    async def test_engines_that_cannot_be_are_passed_over(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
        discovering = asyncio.create_task(KvRouter.discover(fleet.runtime().endpoint(ENDPOINT)))
        await fleet.worker("none", block_size=0)
        first = await fleet.worker("m")
        await fleet.heard_of(await within(discovering), first)
        assert "ignoring the discovery entry" in caplog.text

    async def test_others_must_have_the_same_files(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
        first = await fleet.worker("m", content_hash="one")
        router = await within(KvRouter.discover(fleet.runtime().endpoint(ENDPOINT)))
        unlike = await fleet.worker("m", content_hash="two")
        like = await fleet.worker("m", content_hash="one")
        await fleet.heard_of(router, first, like)
        said = (
            f"instance {unlike.id:x} gets no requests: it serves 'm' with KV blocks of 4 tokens and other model files"
        )
        await eventually(lambda: said in caplog.text)
        with pytest.raises(InvalidRequestError):
            await anext(await router.generate(PROMPT, "m", worker_id=unlike.id))

    async def test_discovery_ends(self, fleet: Fleet) -> None:
        runtime = fleet.runtime()
        discovering = asyncio.create_task(KvRouter.discover(runtime.endpoint(ENDPOINT)))
        await asyncio.sleep(0)
        await runtime.close()
        with pytest.raises(ConfigError):
            await within(discovering)


async def test_potential_loads(fleet: Fleet) -> None:
    holds, empty = await fleet.worker(), await fleet.worker()
    router = await fleet.router(holds, empty)
    await stored(router, holds, PROMPT, cache_salt="mine")
    await router.best_worker(list(range(100, 106)), request_id="a")
    busy = next(instance for instance, (tokens, _) in load(router).items() if tokens)

    def expected(worker: Worker, overlap_tokens: int) -> PotentialLoad:
        is_busy = worker.id == busy
        return PotentialLoad(
            worker_id=worker.id,
            dp_rank=0,
            potential_prefill_tokens=len(PROMPT) - overlap_tokens + 6 * is_busy,
            potential_decode_blocks=3 + 2 * is_busy,
        )

    def by_worker(loads: list[PotentialLoad]) -> list[PotentialLoad]:
        return sorted(loads, key=lambda each: each.worker_id != holds.id)

    assert by_worker(router.get_potential_loads(PROMPT)) == [expected(holds, 0), expected(empty, 0)]
    salted = router.get_potential_loads(PROMPT, cache_salt="mine")
    assert by_worker(salted) == [expected(holds, 8), expected(empty, 0)]


async def test_potential_loads_count_shared_blocks_once(fleet: Fleet) -> None:
    router = await fleet.router(await fleet.worker())
    await router.best_worker(PROMPT, request_id="a")
    [whole] = router.get_potential_loads(PROMPT)
    assert whole.potential_decode_blocks == 3 + 1  # the last block is not full, and so nobody else's
    [half] = router.get_potential_loads([*PROMPT[:4], 99, 99, 99, 99])
    assert half.potential_decode_blocks == 3 + 1


async def test_dumped_events_make_the_same_known(fleet: Fleet) -> None:
    workers = [await fleet.worker() for _ in range(2)]
    router = await fleet.router(*workers)
    assert router.dump_events() == []
    await stored(router, workers[0], PROMPT)
    [(worker, event)] = router.dump_events()
    assert worker == WorkerId(workers[0].id)
    assert isinstance(event, BlockStored)
    hashes = sequence_hashes(token_array(PROMPT), BLOCK_SIZE)
    assert sorted(hashes_from_bytes(event.hashes)) == sorted(hashes)


async def test_closing_ends_all_that_it_has_begun(fleet: Fleet) -> None:
    await fleet.worker("m")
    runtime = fleet.runtime()
    await runtime.endpoint("test.other.generate").start(Scripted[Any, Any](answers()))  # it listens from now on
    before = names()
    router = KvRouter(runtime.endpoint(ENDPOINT), BLOCK_SIZE, KvRouterConfig(router_replica_sync=True))
    await within(router.wait_for_workers())
    assert names() > before
    await within(router.close())
    await eventually(lambda: names() <= before)


def names() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks() if not task.get_name().startswith("Task-")}
