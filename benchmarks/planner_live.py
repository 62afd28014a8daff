"""`python -m benchmarks.planner_live`: `dynamo serve --planner` under a load that rises 5x and falls back.

All of it are real processes: the frontend, the planner, workers that come and go, and a client that checks every
answer; the engine is the mocker. --plot draws what was asked, how many workers there were, and how soon the first
tokens came.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from benchmarks.open_loop import OpenLoopJob, Shot
from benchmarks.planner_live_plan import OUTPUT_TOKENS, PROMPT_TOKENS, LivePlan
from benchmarks.planner_live_report import Result, Sample, table
from benchmarks.plots import check_plot
from benchmarks.programs import BenchmarkError, Programs, programs
from benchmarks.prompt import Prompt, build_prompt
from benchmarks.ramp_load import RampJob
from dynamo.errors import DynamoError, UnavailableError
from dynamo.llm.model_source import resolve_model
from dynamo.planner.connectors.local import LocalConnector
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime

_NAMESPACE = "planner-live"
_MODEL = "m"
_LOOK_S = 0.25
_TIMEOUT_S = 60.0
_AGGREGATED = WorkerType.Aggregated


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A deployment that is serving."""

    plan: LivePlan
    programs: Programs
    port: int
    serve_pid: int
    prompt: Prompt
    samples: list[Sample] = field(default_factory=list)  # those of the measurement under way


@contextmanager
def live(plan: LivePlan, model_dir: Path) -> Iterator[Live]:
    """Starts it; ends it with the block."""
    prompt = build_prompt(model_dir, PROMPT_TOKENS)
    with programs(log_level="info") as started:
        flags = ["--namespace", _NAMESPACE, "--model-name", _MODEL, *plan.serve_flags()]
        serve_pid = started.start("serve", "dynamo.cli.main", "serve", str(model_dir), *flags)
        url = started.wait_until_ready("serve").split()[2]
        port = int(url.rpartition(":")[2])
        yield Live(plan=plan, programs=started, port=port, serve_pid=serve_pid, prompt=prompt)


async def measure(it: Live) -> Result:
    """Sends the whole load and watches the workers meanwhile."""
    async with watched(it):
        shots = await send(it)
    return Result(plan=it.plan, shots=shots, samples=it.samples)


@asynccontextmanager
async def watched(it: Live) -> AsyncIterator[None]:
    """Within the block, `it.samples` grows."""
    runtime = DistributedRuntime(config=RuntimeConfig(file_kv=str(it.programs.discovery)))
    watching = asyncio.create_task(_watch(it, LocalConnector(runtime, _NAMESPACE)))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await runtime.close(graceful=False)


async def send(it: Live) -> list[Shot]:
    """The whole load; what became of each request."""
    timeout_s = it.plan.seconds + it.plan.patience_s + _TIMEOUT_S
    return await asyncio.to_thread(it.programs.drive, "benchmarks.ramp_load", _job(it), list[Shot], timeout_s)


async def _watch(it: Live, connector: LocalConnector) -> None:
    started_s = time.monotonic()
    while True:
        with contextlib.suppress(UnavailableError):
            fleet = (await connector.fleets())[_AGGREGATED]
            it.samples.append(
                Sample(
                    at_s=time.monotonic() - started_s,
                    desired=fleet.desired,
                    ready=fleet.ready,
                    held=fleet.ready + len(fleet.starting_s) + fleet.draining,
                )
            )
        await asyncio.sleep(_LOOK_S)


def _job(it: Live) -> RampJob:
    plan = it.plan
    whole = OpenLoopJob(
        port=it.port,
        model=_MODEL,
        prompt=it.prompt,
        output_tokens=OUTPUT_TOKENS,
        rate_per_s=0.0,
        warm_up_s=0.0,
        seconds=0.0,
        patience_s=plan.patience_s,
        seed=plan.seed,
    )
    return RampJob(
        stretches=[
            msgspec.structs.replace(
                whole, rate_per_s=stretch.rate_per_s, seconds=stretch.seconds, seed=plan.seed + number
            )
            for number, stretch in enumerate(plan.stretches())
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planner_live",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a PNG (needs the extra `plot`)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep what `dynamo serve` prints, decisions included")
    parser.add_argument("--seed", type=int, default=LivePlan().seed, help="of the arrivals (default: %(default)s)")
    options = parser.parse_args(argv)
    plan = replace(LivePlan(), seed=options.seed)
    try:
        check_plot(options.plot)
        print(f"{plan.seconds:.0f} s of load ...", file=sys.stderr, flush=True)
        with live(plan, resolve_model("smollm2", weights=False)) as it:
            result = asyncio.run(measure(it))
            if options.log is not None:
                options.log.write_text(it.programs.output("serve"))
    except (BenchmarkError, DynamoError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(table(result))
    if options.plot is not None:
        from benchmarks.planner_live_plot import draw  # needs matplotlib

        draw(result, options.plot)
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
