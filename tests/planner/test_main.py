"""The whole planner in one process, with workers and frontends that are only said to be there."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from dynamo.errors import ConfigError
from dynamo.planner.config import PlannerOptions
from dynamo.planner.connectors.kubernetes_config import KubernetesConfig
from dynamo.planner.decision import Decision, Scale
from dynamo.planner.decisions import DecisionsRequest, PlannerReport
from dynamo.planner.main import run_planner
from dynamo.planner.process_config import PlannerConfig
from dynamo.planner.scaling import ScalingTarget
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType
from dynamo.protocols.traffic import ModelTraffic
from dynamo.runtime import DistributedRuntime
from dynamo.runtime.handler import closing
from dynamo.testing import within

from .fleet import NAMESPACE, FakeFleet
from .prometheus_stand_in import prometheus

OPTIONS = PlannerOptions(mode="load", interval_s=0.02, scale_down_delay_s=0.0, max_decode_workers=2)
CONFIG = PlannerConfig(
    namespace=NAMESPACE, discovery_backend="mem", request_plane="inproc", connector="virtual", planner=OPTIONS
)
BUSY = [WorkerLoad(running_requests=1, waiting_requests=8)]
UP = Scale(role=WorkerType.Aggregated, workers=2)


class Asked:
    """Hears what a planner decides."""

    def __init__(self, fleet: FakeFleet) -> None:
        self._fleet = fleet
        self._decisions = fleet.runtime.client(
            fleet.runtime.endpoint(f"{NAMESPACE}.planner.decisions").id, PlannerReport
        )

    async def first(self, fits: Callable[[Decision], bool]) -> Decision:
        async def find() -> Decision:
            await self._decisions.wait_for_instances()
            answers = await self._decisions.generate(DecisionsRequest(last=256, follow=True), annotated=False)
            async with closing(answers) as reports:
                async for report in reports:
                    if fits(report.decision):
                        decision: Decision = report.decision
                        return decision
            raise AssertionError("the stream has ended")

        return await within(find())

    async def target(self) -> ScalingTarget:
        endpoint = self._fleet.runtime.endpoint(f"{NAMESPACE}.planner.scaling")
        client = await endpoint.client(response_type=ScalingTarget)
        async with closing(await client.generate({}, annotated=False)) as answers:
            target: ScalingTarget = await within(anext(answers))
            return target


@asynccontextmanager
async def running(fleet: FakeFleet, config: PlannerConfig = CONFIG) -> AsyncIterator[Asked]:
    """A planner beside the fleet, which ends in order with the block."""
    runtime = DistributedRuntime(config=config, shared=fleet.runtime.shared)
    ready = asyncio.Event()
    task = asyncio.create_task(run_planner(runtime, config, ready.set))
    try:
        await within(ready.wait())
        yield Asked(fleet)
    finally:
        runtime.shutdown()
        assert await within(task) == 0


async def start_frontend(fleet: FakeFleet) -> None:
    """It has never been asked for anything."""

    async def traffic(request: object) -> AsyncIterator[list[ModelTraffic]]:
        yield []

    await fleet.runtime.endpoint(f"{NAMESPACE}.frontend.traffic").start(traffic)


async def test_from_what_is_seen_to_the_target(fleet: FakeFleet) -> None:
    await start_frontend(fleet)
    worker = await fleet.add()
    async with running(fleet) as planner:
        quiet = await planner.first(lambda decision: not decision.held)
        assert quiet.observed is not None
        assert quiet.observed.requests_per_s == 0
        assert not quiet.actions
        worker.load = BUSY
        decision = await planner.first(lambda decision: bool(decision.actions))
        assert decision.actions == (UP,)
        await planner.first(lambda later: later.number > decision.number and later.roles[0].current == 2)
        assert (await planner.target()).workers == {WorkerType.Aggregated: 2}


async def test_advisory(fleet: FakeFleet) -> None:
    await start_frontend(fleet)
    worker = await fleet.add()
    worker.load = BUSY
    config = dataclasses.replace(CONFIG, planner=dataclasses.replace(OPTIONS, advisory=True))
    async with running(fleet, config) as planner:
        decision = await planner.first(lambda decision: decision.actions == (UP,))
        again = await planner.first(lambda later: later.number > decision.number)
        assert again.roles[0].current == 1
        assert (await planner.target()).id == 0


async def test_without_a_frontend_everything_is_held(fleet: FakeFleet) -> None:
    worker = await fleet.add()
    worker.load = BUSY
    async with running(fleet) as planner:
        held = await planner.first(lambda decision: decision.number >= 3)
        assert held.held
        assert "traffic: no frontend in namespace 'n' tells its traffic" in held.problems
        assert not held.actions


async def test_a_silent_worker_is_told(fleet: FakeFleet) -> None:
    await start_frontend(fleet)
    worker = await fleet.add()
    worker.hangs = True
    async with running(fleet) as planner:
        await planner.first(lambda decision: f"workers do not say their load: {worker.id:x}" in str(decision.problems))


async def test_with_prometheus(fleet: FakeFleet) -> None:
    await fleet.add()
    with prometheus() as server:
        server.figures = {"ended": "120", "begun": "0", "prompt_tokens": "NaN"}
        async with running(fleet, dataclasses.replace(CONFIG, prometheus_url=server.url)) as planner:
            decision = await planner.first(lambda decision: decision.observed is not None)
            assert decision.observed is not None
            assert decision.observed.requests_per_s == 2
            server.figures = {}
            await planner.first(lambda decision: "traffic: Prometheus has no" in str(decision.problems))


async def test_a_connector_that_does_not_convert(fleet: FakeFleet) -> None:
    await start_frontend(fleet)
    await fleet.add()
    config = dataclasses.replace(CONFIG, planner=dataclasses.replace(OPTIONS, convert_roles=True))
    async with running(fleet, config) as planner:
        assert not (await planner.first(lambda decision: not decision.held)).actions


async def test_a_budget_that_cannot_hold_the_fewest_workers_is_refused_at_once(fleet: FakeFleet) -> None:
    config = dataclasses.replace(
        CONFIG,
        connector="kubernetes",
        kubernetes=KubernetesConfig(prefill="p", decode="d", namespace="n", url="http://127.0.0.1:1"),
        planner=dataclasses.replace(OPTIONS, gpu_budget=1),
    )
    with pytest.raises(ConfigError, match="the fewest prefill and decode workers have 2 GPUs, --gpu-budget is 1"):
        await within(run_planner(fleet.runtime, config, lambda: None))


async def test_a_budget_that_no_deployment_could_keep_to_is_refused_too(fleet: FakeFleet) -> None:
    config = dataclasses.replace(CONFIG, planner=dataclasses.replace(OPTIONS, gpu_budget=1, min_decode_workers=2))
    with pytest.raises(ConfigError, match="the fewest decode workers have 2 GPUs, --gpu-budget is 1"):
        await within(run_planner(fleet.runtime, config, lambda: None))
