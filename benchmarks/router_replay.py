"""`python -m benchmarks.router_replay JOB`: plays a trace to running workers in real time, through a router in here."""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import uvloop

from benchmarks.programs import START_TIMEOUT_S
from dynamo.llm.kv_router import KvRouter
from dynamo.protocols.generation import (
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
)
from dynamo.router import PushRouter, RouterMode
from dynamo.router.config import KvRouterConfig
from dynamo.router.placement import SelectorPlacer
from dynamo.runtime import Context, DistributedRuntime, dynamo_worker
from dynamo.runtime.component import Endpoint
from dynamo.runtime.stage import pulled
from dynamo.simulator.arrivals import scaled_times_s
from dynamo.simulator.modes import SimulatedMode
from dynamo.simulator.trace import TraceRequest, read_trace

_POLL_S = 0.05
_Route = Callable[[PreprocessedRequest, Context], AsyncIterator[LLMEngineOutput]]


class ReplayJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to play to whom."""

    trace: str
    limit: int
    trace_block_size: int
    rate_per_s: float
    endpoint: str
    model: str
    workers: int
    mode: SimulatedMode
    kv_router: KvRouterConfig
    block_size: int


class ReplaySample(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    requests: int
    hit_ratio: float
    ttft_mean_s: float
    latency_mean_s: float


class _Answer(msgspec.Struct, frozen=True):
    ttft_s: float
    latency_s: float
    cached_tokens: int


@dynamo_worker()
async def replay(runtime: DistributedRuntime, job: ReplayJob) -> ReplaySample:
    """Sends each request at its time, whatever became of those before."""
    requests = read_trace(Path(job.trace), limit=job.limit, block_size=job.trace_block_size)
    async with _routing(runtime.endpoint(job.endpoint), job) as handler, asyncio.TaskGroup() as group:
        begin_s = time.perf_counter()
        tasks = [
            group.create_task(_ask(handler, job, request, number, begin_s + time_s))
            for number, (request, time_s) in enumerate(
                zip(requests, scaled_times_s(requests, job.rate_per_s), strict=True)
            )
        ]
    return _sample(requests, [task.result() for task in tasks])


@asynccontextmanager
async def _routing(endpoint: Endpoint, job: ReplayJob) -> AsyncIterator[_Route]:
    """A router that knows all workers; TimeoutError when they don't come."""
    client = await endpoint.client()
    async with asyncio.timeout(START_TIMEOUT_S):
        while len(client.instance_ids()) < job.workers:
            await client.wait_for_change()
    if not job.mode.is_kv:
        placer = SelectorPlacer(RouterMode(job.mode.value), random.Random(0))  # noqa: S311
        yield pulled(PushRouter(client, placer, lambda _: True).generate)
        return
    router = KvRouter(endpoint, job.block_size, job.mode.kv_config(job.kv_router))
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while len(await router.wait_for_workers()) < job.workers:  # noqa: ASYNC110 - nothing tells of the others
                await asyncio.sleep(_POLL_S)
        yield router.serve
    finally:
        await router.close()


async def _ask(handler: _Route, job: ReplayJob, request: TraceRequest, number: int, at_s: float) -> _Answer:
    await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
    preprocessed = PreprocessedRequest(
        model=job.model,
        token_ids=request.prompt(job.trace_block_size),
        sampling_options=SamplingOptions(seed=number),
        stop_conditions=StopConditions(max_tokens=request.output_tokens, ignore_eos=True),
    )
    sent_s = time.perf_counter()
    first: LLMEngineOutput | None = None
    first_s = 0.0
    async for output in handler(preprocessed, Context()):
        if first is None:
            first, first_s = output, time.perf_counter()
    assert first is not None
    return _Answer(first_s - sent_s, time.perf_counter() - sent_s, first.cached_tokens or 0)


def _sample(requests: Sequence[TraceRequest], answers: Sequence[_Answer]) -> ReplaySample:
    return ReplaySample(
        requests=len(answers),
        hit_ratio=sum(answer.cached_tokens for answer in answers) / sum(r.prompt_tokens for r in requests),
        ttft_mean_s=sum(answer.ttft_s for answer in answers) / len(answers),
        latency_mean_s=sum(answer.latency_s for answer in answers) / len(answers),
    )


async def _main(job: ReplayJob) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(await replay(job)))


if __name__ == "__main__":
    uvloop.run(_main(msgspec.json.decode(sys.argv[1], type=ReplayJob)))
