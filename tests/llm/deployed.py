"""A frontend's models and the workers that announce them, all in one process."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamo.llm.artifacts import ArtifactCache
from dynamo.llm.model_manager import ModelManager
from dynamo.llm.register import register_model
from dynamo.llm.routing_setup import RoutingSetup
from dynamo.protocols.model_card import ModelCard, ModelInput, ModelType
from dynamo.router.selection import RouterMode
from dynamo.runtime import Context, DistributedRuntime, RuntimeConfig
from dynamo.testing import eventually
from dynamo.testing.tiny_model import byte_fallback_files, byte_level_files

BOTH = ModelType.Chat | ModelType.Completions


def write_model(directory: Path, *, other: bool = False) -> Path:
    directory.mkdir()
    for name, content in (byte_fallback_files() if other else byte_level_files()).items():
        (directory / name).write_bytes(content)
    return directory


async def answer(request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
    yield {"token_ids": [300], "finish_reason": "stop"}


@dataclass(slots=True)
class Deployed:
    """Every worker is a runtime of its own; `runtime` is the frontend's."""

    runtime: DistributedRuntime
    workers: list[DistributedRuntime] = field(default_factory=list)

    def manager(self, namespace: str | None = None, mode: RouterMode = RouterMode.ROUND_ROBIN) -> ModelManager:
        routing = RoutingSetup(mode=mode)
        return ModelManager(self.runtime, namespace=namespace, routing=routing, cache=ArtifactCache(None))

    def new_worker(self) -> DistributedRuntime:
        worker = DistributedRuntime(config=self.runtime.config, shared=self.runtime.shared)
        self.workers.append(worker)
        return worker

    async def serve(
        self,
        name: str,
        model: Path,
        *,
        path: str = "ns.backend.generate",
        handler: Callable[..., Any] = answer,
        **options: Any,
    ) -> DistributedRuntime:
        """A new worker, announced."""
        worker = self.new_worker()
        await worker.endpoint(path).start(handler)
        await self.announce(worker, name, model, path=path, **options)
        return worker

    async def announce(
        self, worker: DistributedRuntime, name: str, model: Path, *, path: str = "ns.backend.generate", **options: Any
    ) -> ModelCard:
        return await register_model(ModelInput.Tokens, BOTH, worker.endpoint(path), model, name, **options)


@asynccontextmanager
async def deployed() -> AsyncIterator[Deployed]:
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    made = Deployed(runtime)
    try:
        yield made
    finally:
        for worker in made.workers:
            await worker.close(graceful=False)
        await runtime.close()


async def until_models(manager: ModelManager, expected: dict[str, int]) -> None:
    """Waits until exactly these models are served, each by that many workers."""
    await eventually(lambda: {m.card.name: len(m.instances()) for m in manager.models()} == expected)
