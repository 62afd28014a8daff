"""Workers of one process that announce models, as far as a planner can see them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from dynamo.llm.register import ModelEntry
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import ModelCard, ModelInput, ModelType, WorkerType
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.instance import EndpointId

NAMESPACE = "n"
_COMPONENTS = {WorkerType.Aggregated: "backend", WorkerType.Decode: "backend", WorkerType.Prefill: "prefill"}


@dataclass(slots=True)
class FakeWorker:
    """Takes requests, so it says, and tells the load that the test gives it."""

    runtime: DistributedRuntime
    endpoint: EndpointId
    load: list[WorkerLoad] = field(default_factory=lambda: [WorkerLoad()])
    hangs: bool = False

    @property
    def id(self) -> int:
        return self.runtime.instance_id

    async def answer(self, request: object) -> AsyncIterator[list[WorkerLoad]]:
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        yield self.load


@dataclass(slots=True)
class FakeFleet:
    """All workers of a namespace; `runtime` is the planner's."""

    runtime: DistributedRuntime
    workers: list[FakeWorker] = field(default_factory=list)

    async def add(self, role: WorkerType = WorkerType.Aggregated, *, model: str = "m") -> FakeWorker:
        runtime = DistributedRuntime(config=self.runtime.config, shared=self.runtime.shared)
        worker = FakeWorker(runtime, EndpointId(NAMESPACE, _COMPONENTS[role], "generate"))
        await runtime.endpoint(str(worker.endpoint.beside("load"))).start(worker.answer)
        await runtime.endpoint(str(worker.endpoint)).start(worker.answer)
        card = ModelCard(name=model, model_type=ModelType.Chat.value, model_input=ModelInput.Tokens, worker_type=role)
        entry = ModelEntry(instance_id=runtime.instance_id, endpoint=worker.endpoint, card=card)
        await runtime.register(entry.key, entry.encode())
        self.workers.append(worker)
        return worker

    async def remove(self, worker: FakeWorker) -> None:
        self.workers.remove(worker)
        await worker.runtime.close(graceful=False)


@asynccontextmanager
async def fake_fleet() -> AsyncIterator[FakeFleet]:
    made = FakeFleet(DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc")))
    try:
        yield made
    finally:
        for worker in tuple(made.workers):
            await made.remove(worker)
        await made.runtime.close()
