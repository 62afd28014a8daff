"""What is asked of a worker, what it refuses, and how a change of its role ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dynamo.engines.base import EngineInfo
from dynamo.engines.config import DisaggregatedWorkerConfig
from dynamo.engines.echo import EchoEngine
from dynamo.engines.role_changes import RoleChanges
from dynamo.engines.served_engine import ServedEngine
from dynamo.errors import DrainingError, InternalError, InvalidRequestError, UnavailableError, UnsupportedFeatureError
from dynamo.llm.register import MODELS_PREFIX
from dynamo.protocols.model_card import ModelType, WorkerType
from dynamo.protocols.role import RoleRequest, WorkerRole
from dynamo.runtime.discovery.base import Put
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.testing import within
from dynamo.testing.tiny_model import byte_level_files
from dynamo.testing.waiting import DEADLINE_S

PREFILL, DECODE = WorkerType.Prefill, WorkerType.Decode


@dataclass
class Changing:
    """An engine that takes its time over it, or fails."""

    begun: asyncio.Event
    may_end: asyncio.Event
    error: Exception | None = None

    async def __call__(self, role: WorkerType) -> None:
        self.begun.set()
        await self.may_end.wait()
        if self.error is not None:
            raise self.error


@dataclass
class Worker:
    runtime: DistributedRuntime
    changes: RoleChanges
    engine: Changing

    async def ask(self, role: WorkerType | None = None, *, force: bool = False) -> WorkerRole:
        answers = self.changes.answer(RoleRequest(role=role, force=force))
        return await within(anext(answers))

    def served(self) -> dict[str, bool]:
        return {path.removeprefix("dynamo."): serving for path, serving in self.runtime.health.endpoints.items()}


Make = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Workers that see each other."""
    model = tmp_path / "tiny"
    model.mkdir()
    for name, content in byte_level_files().items():
        (model / name).write_bytes(content)
    workers: list[Worker] = []

    async def worker(
        role: WorkerType = PREFILL, *, can_change: bool = True, endpoint: str | None = None, news_s: float = 0.05
    ) -> Worker:
        config = DisaggregatedWorkerConfig(
            discovery_backend="mem",
            request_plane="inproc",
            file_kv=str(tmp_path / "discovery"),
            disaggregation_mode=role.value,
            endpoint=endpoint,
        )
        runtime = workers[0].runtime.sibling() if workers else DistributedRuntime(config=config)
        changing = Changing(asyncio.Event(), asyncio.Event())
        changing.may_end.set()
        info = EngineInfo(change_role=changing if can_change else None)
        served = ServedEngine(
            runtime,
            config,
            EchoEngine(),
            info,
            None,
            name="m",
            model_path=str(model),
            model_type=ModelType.Completions,
        )
        await served.announce()
        changes = RoleChanges(served, news_s=news_s)
        await changes.start()
        workers.append(Worker(runtime, changes, changing))
        return workers[-1]

    yield worker
    for each in workers:
        await within(each.changes.close())
    await within(workers[0].runtime.close())


async def test_there_and_back(make: Make) -> None:
    worker = await make()
    models = worker.runtime.discovery.watch(MODELS_PREFIX)
    state = await worker.ask()
    assert (state.role, state.model, state.can_change, state.becoming) == (PREFILL, "m", True, None)
    before = worker.served()
    assert "prefill.generate" in before
    for role, component in ((DECODE, "backend"), (PREFILL, "prefill")):
        assert (await worker.ask(role, force=True)).role is role
        assert {path for path in worker.served() if path != "worker.role"} == {
            path.replace("prefill", component) for path in before if path != "worker.role"
        }
        assert worker.runtime.health.ready
        puts = [event for event in models.take() if isinstance(event, Put)]
        assert f"dynamo.{component}.generate/{worker.runtime.instance_id:x}" in puts[-1].key
        assert len(worker.runtime._watchdogs) == 1


async def test_the_role_that_it_has(make: Make) -> None:
    worker = await make()
    assert (await worker.ask(PREFILL)).role is PREFILL
    assert not worker.engine.begun.is_set()


async def test_what_cannot_change(make: Make) -> None:
    fixed, named = await make(can_change=False), await make(endpoint="dynamo.here.generate")
    for worker, reason in ((fixed, "engine"), (named, "--endpoint")):
        assert not (await worker.ask()).can_change
        with pytest.raises(UnsupportedFeatureError, match=reason):
            await worker.ask(DECODE)
    with pytest.raises(InvalidRequestError, match="not both"):
        await fixed.ask(WorkerType.Aggregated)


async def test_somebody_has_to_decode(make: Make) -> None:
    worker = await make(DECODE)
    with pytest.raises(InvalidRequestError) as refusal:
        await worker.ask(PREFILL)
    assert refusal.value.param == "force"
    await make(DECODE)
    assert (await worker.ask(PREFILL)).role is PREFILL


async def test_the_last_two_are_asked_at_once(make: Make) -> None:
    """Neither may count on the other."""
    workers = [await make(DECODE), await make(DECODE)]
    answers = await asyncio.gather(*(worker.ask(PREFILL) for worker in workers), return_exceptions=True)
    assert any(isinstance(answer, InvalidRequestError) for answer in answers)
    assert DECODE in [(await worker.ask()).role for worker in workers]
    assert all(worker.runtime.health.ready for worker in workers)


async def test_who_decodes_may_have_begun_just_now(make: Make) -> None:
    worker = await make(DECODE, news_s=30.0)
    changing = asyncio.create_task(worker.ask(PREFILL))
    await asyncio.sleep(0)
    await make(PREFILL)
    await make(DECODE)
    assert (await within(changing)).role is PREFILL


async def test_one_change_at_a_time(make: Make) -> None:
    worker = await make()
    worker.engine.may_end.clear()
    changing = asyncio.create_task(worker.ask(DECODE))
    await within(worker.engine.begun.wait())
    assert (await worker.ask()).becoming is DECODE
    for role in (PREFILL, DECODE):
        with pytest.raises(UnavailableError, match="about to become"):
            await worker.ask(role)
    changing.cancel()  # nobody waits for it
    await asyncio.wait([changing])
    worker.engine.may_end.set()
    async with asyncio.timeout(DEADLINE_S):
        while (await worker.ask()).becoming is not None:  # noqa: ASYNC110 - nothing would set an event
            await asyncio.sleep(0)
    assert "backend.generate" in worker.served()


async def test_a_failure_ends_the_worker(make: Make) -> None:
    worker = await make()
    worker.engine.error = ValueError("out of order")
    failed = asyncio.create_task(worker.changes.failed())
    with pytest.raises(InternalError, match="could not become a decode worker: out of order"):
        await worker.ask(DECODE)
    assert await within(failed) == "this worker could not become a decode worker: out of order"
    assert worker.served() == {"worker.role": True}


async def test_told_to_end_meanwhile(make: Make) -> None:
    worker = await make()
    worker.engine.may_end.clear()
    changing = asyncio.create_task(worker.ask(DECODE))
    await within(worker.engine.begun.wait())
    worker.runtime.shutdown()
    with pytest.raises(DrainingError):
        await changing
    with pytest.raises(DrainingError):
        await worker.ask(DECODE)
