"""`python -m benchmarks.overload`: what a fleet gets done when more is asked of it than it can do.

A real frontend and simulated workers. First as many requests at a time as the workers can run twice over say what the
fleet's capacity is. Then requests arrive independently at multiples of it, at a frontend without limits and at one with
--ttft-limit. Goodput: requests per second, of those that arrived in the time measured, that met both targets.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.goodput import Targets
from benchmarks.http_load import HttpJob, HttpSample
from benchmarks.open_loop import OpenLoopJob, Shot
from benchmarks.programs import BenchmarkError, Programs, programs
from benchmarks.prompt import Prompt, build_prompt
from benchmarks.stack import OUTPUT_TOKENS, wait_for_workers
from dynamo.errors import DynamoError
from dynamo.llm.model_source import resolve_model

SECONDS = 20.0
SEED = 1
LOADS = (0.5, 1.0, 2.0, 3.0)
PROMPT_TOKENS = 256
TARGETS = Targets(ttft_s=1.0, tpot_s=0.05)
_MODEL = "m"
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured."""

    workers: int = 2
    max_num_seqs: int = 16  # of each: few, so that it is they who are overloaded and not this machine
    loads: Sequence[float] = LOADS  # over the capacity
    seconds: float = SECONDS
    warm_up_s: float = 5.0
    targets: Targets = TARGETS
    seed: int = SEED


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """One that is serving."""

    programs: Programs
    port: int
    frontend_pid: int
    worker_pids: list[int]
    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One load on one frontend."""

    title: str
    load: float
    offered_per_s: float
    goodput_per_s: float
    refused_share: float
    ttft_p50_s: float  # of those that were not refused; who got no token has waited at least so long
    ttft_p99_s: float
    tpot_p99_s: float

    @classmethod
    def of(cls, title: str, load: float, shots: Sequence[Shot], plan: Plan) -> "Row":
        admitted = [shot for shot in shots if shot.status in (0, 200)]
        ttft_s = sorted(shot.waited_s if shot.ttft_s is None else shot.ttft_s for shot in admitted)
        tpot_s = sorted(shot.tpot_s for shot in admitted if shot.tpot_s is not None)
        return cls(
            title=title,
            load=load,
            offered_per_s=len(shots) / plan.seconds,
            goodput_per_s=sum(is_good(shot, plan.targets) for shot in shots) / plan.seconds,
            refused_share=1 - len(admitted) / max(1, len(shots)),
            ttft_p50_s=_percentile(ttft_s, 0.5),
            ttft_p99_s=_percentile(ttft_s, 0.99),
            tpot_p99_s=_percentile(tpot_s, 0.99),
        )


def is_good(shot: Shot, targets: Targets) -> bool:
    """Whether it was answered completely, and in time."""
    if shot.status != 200 or shot.ttft_s is None or shot.tpot_s is None:
        return False
    return shot.ttft_s <= targets.ttft_s and shot.tpot_s <= targets.tpot_s


def measure(plan: Plan, model_dir: Path) -> Iterator[Row]:
    """All loads, without limits and with them. Each frontend has served nothing before, and each load idle workers."""
    prompt = build_prompt(model_dir, PROMPT_TOKENS)
    with _serving(plan, model_dir, prompt, []) as fleet:
        capacity_per_s = _capacity_per_s(fleet, plan)
    for title, flags in (("no limits", []), ("protected", ["--ttft-limit", f"{plan.targets.ttft_s:g}"])):
        for load in plan.loads:
            with _serving(plan, model_dir, prompt, flags) as fleet:
                yield Row.of(title, load, _fire(fleet, plan, load * capacity_per_s), plan)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    head = "| | load | offered/s | goodput/s | refused | TTFT p50 | TTFT p99 | TPOT p99 |"
    lines = [head, "|---" + "|--:" * 7 + "|"]
    lines += [
        f"| {row.title} | {row.load:g}x | {row.offered_per_s:.1f} | {row.goodput_per_s:.1f} | {row.refused_share:.0%} "
        f"| {row.ttft_p50_s:.2f} s | {row.ttft_p99_s:.2f} s | {1000 * row.tpot_p99_s:.1f} ms |"
        for row in rows
    ]
    return "\n".join(lines)


@contextmanager
def _serving(plan: Plan, model_dir: Path, prompt: Prompt, flags: Sequence[str]) -> Iterator[Fleet]:
    with programs() as started:
        frontend_pid = started.start("frontend", "dynamo.frontend", "--http-port", "0", "--no-access-log", *flags)
        mocker = [
            *("--model-path", str(model_dir), "--model-name", _MODEL, "--max-model-len", "8192"),
            *("--max-num-seqs", str(plan.max_num_seqs)),
        ]
        worker_pids = [started.start(f"worker{i}", "dynamo.mocker", *mocker) for i in range(plan.workers)]
        url = started.wait_until_ready("frontend")
        wait_for_workers(url, plan.workers)
        yield Fleet(
            programs=started,
            port=int(url.rpartition(":")[2]),
            frontend_pid=frontend_pid,
            worker_pids=worker_pids,
            prompt=prompt,
        )


def _capacity_per_s(fleet: Fleet, plan: Plan) -> float:
    job = HttpJob(
        port=fleet.port,
        model=_MODEL,
        frontend_pid=fleet.frontend_pid,
        worker_pids=fleet.worker_pids,
        prompt=fleet.prompt,
        output_tokens=OUTPUT_TOKENS,
        concurrency=2 * plan.workers * plan.max_num_seqs,
        warm_up_s=min(2.0, plan.warm_up_s),
        seconds=plan.seconds / 2,
    )
    sample = fleet.programs.drive("benchmarks.http_load", job, HttpSample, plan.seconds + plan.warm_up_s + _TIMEOUT_S)
    if not sample.requests:
        raise BenchmarkError(f"no request completed: {sample.errors}")
    return sample.requests / sample.elapsed_s


def _fire(fleet: Fleet, plan: Plan, rate_per_s: float) -> list[Shot]:
    patience_s = 5 * plan.targets.ttft_s + 2 * OUTPUT_TOKENS * plan.targets.tpot_s  # then none can be good any more
    job = OpenLoopJob(
        port=fleet.port,
        model=_MODEL,
        prompt=fleet.prompt,
        output_tokens=OUTPUT_TOKENS,
        rate_per_s=rate_per_s,
        warm_up_s=plan.warm_up_s,
        seconds=plan.seconds,
        patience_s=patience_s,
        seed=plan.seed,
    )
    timeout_s = plan.warm_up_s + plan.seconds + patience_s + _TIMEOUT_S
    return fleet.programs.drive("benchmarks.open_loop", job, list[Shot], timeout_s)


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each load (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the arrivals (default: %(default)s)")
    options = parser.parse_args(argv)
    plan = Plan(seconds=options.seconds, seed=options.seed)
    try:
        rows = list(measure(plan, resolve_model("smollm2", weights=False)))
    except (BenchmarkError, DynamoError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
