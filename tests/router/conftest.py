"""Workers of one process behind a router, the network between them simulated in memory."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from dynamo.protocols.generation import PreprocessedRequest
from dynamo.router import PushRouter, RouterMode
from dynamo.router.placement import SelectorPlacer
from dynamo.runtime import Client, DistributedRuntime, RuntimeConfig
from dynamo.testing import eventually
from dynamo.testing.scripted import Scripted

ENDPOINT = "test.backend.generate"


@dataclass(slots=True)
class Fleet:
    """A client of an endpoint and the workers that serve it."""

    runtime: DistributedRuntime
    client: Client
    workers: dict[int, DistributedRuntime] = field(default_factory=dict)
    placer: SelectorPlacer | None = None  # of the latest router
    path: str = ENDPOINT

    async def add(self, handler: Callable[..., Any], request_type: Any = PreprocessedRequest) -> int:
        """Starts a worker; returns its instance id once the client knows it."""
        worker = DistributedRuntime(config=self.runtime.config, shared=self.runtime.shared)
        await worker.endpoint(self.path).start(handler, request_type=request_type)
        self.workers[worker.instance_id] = worker
        await eventually(lambda: worker.instance_id in self.client.instance_ids())
        return worker.instance_id

    async def add_scripted(self, script: Callable[[Any], Any], *, hang: bool = False) -> tuple[int, Scripted[Any, Any]]:
        handler = Scripted[Any, Any](script, hang=hang)
        return await self.add(handler), handler

    def router(
        self,
        mode: RouterMode = RouterMode.ROUND_ROBIN,
        serves: Callable[[int], bool] = lambda _: True,
        fetches: Callable[[int], bool] = lambda _: False,
        **options: Any,
    ) -> PushRouter:
        """`options`: as PushRouter takes them."""
        self.placer = SelectorPlacer(mode, random.Random(0))
        return PushRouter(self.client, self.placer, serves, fetches, **options)

    @property
    def in_flight(self) -> Counter[int]:
        assert self.placer is not None
        return self.placer.in_flight


PREFILL_ENDPOINT = "test.prefill.generate"


@pytest.fixture
async def prefill_fleet(fleet: Fleet) -> AsyncIterator[Fleet]:
    """Workers of another endpoint beside those of `fleet`."""
    client = await fleet.runtime.endpoint(PREFILL_ENDPOINT).client()
    made = Fleet(fleet.runtime, client, path=PREFILL_ENDPOINT)
    yield made
    for worker in made.workers.values():
        await worker.close(graceful=False)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    made = Fleet(runtime, await runtime.endpoint(ENDPOINT).client())
    yield made
    for worker in made.workers.values():
        await worker.close(graceful=False)
    await runtime.close()
