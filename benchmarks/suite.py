"""Runs points, several times over."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.http_load import HttpSample
from benchmarks.points import HttpPoint, Pace, Point, RpcPoint
from benchmarks.programs import programs
from benchmarks.prompt import Prompt
from benchmarks.rpc_load import RpcJob, RpcSample
from benchmarks.stack import serving

_DRIVE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much time a run takes."""

    repetitions: int
    warm_up_s: float
    seconds: float  # of each point
    paced_seconds: float  # requests take longer then


FULL = Effort(repetitions=3, warm_up_s=0.7, seconds=3.0, paced_seconds=5.0)
QUICK = Effort(repetitions=1, warm_up_s=0.5, seconds=2.0, paced_seconds=3.0)


@dataclass(slots=True)
class Results:
    """The samples of each point, one per repetition."""

    http: dict[HttpPoint, list[HttpSample]] = field(default_factory=lambda: defaultdict(list))
    rpc: dict[RpcPoint, list[RpcSample]] = field(default_factory=lambda: defaultdict(list))


def run(points: Sequence[Point], effort: Effort, model_dir: Path, prompt: Prompt) -> Results:
    """Measures all points, then all of them again, with new processes each time: a busy minute hits one repetition."""
    results = Results()
    for repetition in range(1, effort.repetitions + 1):
        for pace in Pace:
            http_points = [p for p in points if isinstance(p, HttpPoint) and p.pace is pace]
            if http_points:
                with serving(model_dir, prompt, speedup=pace.value) as stack:
                    for http_point in http_points:
                        _progress(repetition, effort, http_point.name)
                        seconds = effort.paced_seconds if pace is Pace.PACED else effort.seconds
                        sample = stack.measure(http_point.concurrency, warm_up_s=effort.warm_up_s, seconds=seconds)
                        results.http[http_point].append(sample)
        rpc_points = [p for p in points if isinstance(p, RpcPoint)]
        if rpc_points:
            _run_rpc(repetition, rpc_points, effort, results)
    return results


def _run_rpc(repetition: int, points: Sequence[RpcPoint], effort: Effort, results: Results) -> None:
    with programs() as started:
        server_pid = started.start("server", "benchmarks.rpc_service")
        for point in points:
            _progress(repetition, effort, point.name)
            job = RpcJob(
                server_pid=server_pid,
                items=point.items,
                concurrency=point.concurrency,
                warm_up_s=effort.warm_up_s,
                seconds=effort.seconds,
            )
            results.rpc[point].append(started.drive("benchmarks.rpc_load", job, RpcSample, _DRIVE_TIMEOUT_S))


def _progress(repetition: int, effort: Effort, name: str) -> None:
    print(f"{repetition}/{effort.repetitions} {name}", file=sys.stderr, flush=True)
