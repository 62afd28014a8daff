"""The planner with real processes: its workers are started and ended by the test, which the virtual connector tells."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from dynamo.planner.decisions import DecisionsRequest, PlannerReport
from dynamo.planner.scaling import ScalingRequest, ScalingTarget
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.client import Client
from dynamo.runtime.handler import closing
from dynamo.runtime.process import READY
from dynamo.testing import Program, within
from dynamo.testing.deployment import START_S, Deployment

from .raw_http import connect, encoded, get
from .served import until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

AGGREGATED = WorkerType.Aggregated
COMPLETIONS = "/v1/completions"
NARROW = ("--max-num-seqs", "1", "--speedup-ratio", "1")  # a second request waits
QUICK = (
    *("--connector", "virtual", "--mode", "load", "--max-workers", "2"),
    *("--interval-s", "0.25", "--scale-down-delay-s", "1", "--acknowledge-timeout-s", "0"),
)


def completion(max_tokens: int) -> bytes:
    return encoded({"model": "m", "prompt": "Hello", "max_tokens": max_tokens, "ignore_eos": True, "stream": True})


class Outside:
    """Who carries out what the planner wants."""

    def __init__(self, own: Deployment, model: Path, scaling: Client, decisions: Client) -> None:
        self._own = own
        self._model = model
        self._scaling = scaling
        self._decisions = decisions
        self.workers: list[Program] = []

    async def start_worker(self) -> None:
        self.workers.append(await self._own.mocker(self._model, "m", *NARROW))

    async def end_worker(self) -> None:
        """The youngest, in order."""
        worker = self.workers.pop()
        worker.signal(signal.SIGTERM)
        assert await worker.exit_code(START_S) == 0

    async def target(self, workers: int) -> ScalingTarget:
        """The first one of so many workers."""
        async with asyncio.timeout(START_S), closing(await self._ask_target(ScalingRequest(follow=True))) as targets:
            async for target in targets:
                if target.workers.get(AGGREGATED) == workers and target.id:
                    return target
        raise AssertionError("the stream has ended")

    async def acknowledge(self, target: ScalingTarget) -> None:
        async with closing(await self._ask_target(ScalingRequest(acknowledge=target.id))) as answers:
            assert (await within(anext(answers))).acknowledged

    async def decision(self, fits: Callable[[PlannerReport], bool]) -> PlannerReport:
        """The first one that `fits`, from now on."""
        request = DecisionsRequest(last=1, follow=True)
        await self._decisions.wait_for_instances(START_S)
        answers = await self._decisions.generate(request, annotated=False)
        async with asyncio.timeout(START_S), closing(answers) as reports:
            async for report in reports:
                if fits(report):
                    found: PlannerReport = report
                    return found
        raise AssertionError("the stream has ended")

    async def _ask_target(self, request: ScalingRequest) -> AsyncIterator[ScalingTarget]:
        return await self._scaling.generate(request, annotated=False)


@asynccontextmanager
async def outside(own: Deployment, model: Path) -> AsyncIterator[Outside]:
    runtime = own.runtime()
    try:
        scaling = runtime.client(runtime.endpoint("dynamo.planner.scaling").id, ScalingTarget)
        decisions = runtime.client(runtime.endpoint("dynamo.planner.decisions").id, PlannerReport)
        yield Outside(own, model, scaling, decisions)
    finally:
        await runtime.close()


async def planner(own: Deployment, *flags: str) -> Program:
    started = await own.python("-m", "dynamo.planner", *flags)
    await started.line(READY, START_S)
    return started


def ready(workers: int) -> Callable[[PlannerReport], bool]:
    def fits(report: PlannerReport) -> bool:
        return any(role.ready == role.current == workers for role in report.decision.roles)

    return fits


async def test_workers_follow_the_load_up_and_down(own: Deployment, tiny_model: Path) -> None:
    async with outside(own, tiny_model) as fleet, AsyncExitStack() as streams:
        (_, url), _ = await asyncio.gather(own.frontend(), fleet.start_worker())
        await until_served(url, 1)
        process = await planner(own, *QUICK, "--system-port", "0")
        quiet = await fleet.decision(ready(1))
        assert (quiet.decision.actions, quiet.settings.connector) == ((), "virtual")

        for _ in range(3):  # one runs, two wait
            connection = await streams.enter_async_context(connect(url))
            connection.post(COMPLETIONS, completion(30_000))
        more = await fleet.target(2)
        unheard = await fleet.decision(lambda report: "acknowledged" in " ".join(report.decision.problems))
        assert f"target {more.id}" in " ".join(unheard.decision.problems)
        await fleet.start_worker()
        await fleet.acknowledge(more)
        busy = await fleet.decision(ready(2))
        assert busy.decision.observed is not None
        assert busy.decision.roles[0].target == 2
        await until_served(url, 2)

        await streams.aclose()  # which ends the requests
        fewer = await fleet.target(1)
        await fleet.acknowledge(fewer)
        await fleet.end_worker()
        await fleet.decision(ready(1))
        await process.line("aggregated to 1")
        await _is_told(process, own)
        process.signal(signal.SIGTERM)
        assert await process.exit_code(START_S) == 0


async def _is_told(process: Program, own: Deployment) -> None:
    """By /metrics, and to a person who asks."""
    system = (await process.line("system server on ")).partition("system server on ")[2]
    metrics = (await get(system, "/metrics")).body.decode()
    assert 'dynamo_planner_actions_total{action="scale",role="aggregated"} 2.0' in metrics
    assert (await get(system, "/health")).status == 200
    asked = await own.python("-m", "dynamo.cli.main", "planner", "status")
    assert await asked.exit_code(START_S) == 0
    assert "  aggregated            1          1" in asked.output


async def test_what_cannot_be_used_is_said_at_once(own: Deployment) -> None:
    process = await own.python("-m", "dynamo.planner", "--connector", "virtual", "--profile", "/no/such/file")
    assert await process.exit_code(START_S) == 1
    assert "the profile /no/such/file cannot be read" in process.output
    assert "Traceback" not in process.output
