"""`python -m benchmarks.router_truth TRACE`: does the simulator say what real processes do?

Plays a trace, in real time, to simulated engines that are processes of their own, and compares what the simulator says.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.programs import BenchmarkError, programs
from benchmarks.router_replay import ReplayJob, ReplaySample
from dynamo.config import add_arguments, from_namespace
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.errors import ConfigError, DynamoError
from dynamo.simulator.arrivals import Arrivals, trace_rate_per_s
from dynamo.simulator.config import SimulationConfig
from dynamo.simulator.modes import SimulatedMode
from dynamo.simulator.report import Summary
from dynamo.simulator.simulation import simulate
from dynamo.simulator.trace import TraceRequest, read_trace
from dynamo.testing.tiny_model import byte_level_files

HIT_RATIO_ERROR_MAX = 0.02
TTFT_ERROR_MAX = 0.2  # of the real one
_MODEL = "m"
_ENDPOINT = "dynamo.backend.generate"  # the mocker's own
_LONGEST_ANSWER_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The same requests, really sent and simulated."""

    real: ReplaySample
    simulated: Summary

    @property
    def hit_ratio_error(self) -> float:
        return abs(self.simulated.hit_ratio - self.real.hit_ratio)

    @property
    def ttft_error(self) -> float:
        """As a share of the real one."""
        return abs(self.simulated.ttft_mean_s / self.real.ttft_mean_s - 1)

    @property
    def holds(self) -> bool:
        return self.hit_ratio_error <= HIT_RATIO_ERROR_MAX and self.ttft_error <= TTFT_ERROR_MAX

    def row(self) -> str:
        real, simulated = self.real, self.simulated
        cells = [
            simulated.mode,
            f"{100 * real.hit_ratio:.2f}",
            f"{100 * simulated.hit_ratio:.2f}",
            f"{real.ttft_mean_s:.3f}",
            f"{simulated.ttft_mean_s:.3f}",
            f"{100 * self.ttft_error:.1f}",
            f"{real.latency_mean_s:.2f}",
            f"{simulated.latency_mean_s:.2f}",
        ]
        return f"| {' | '.join(cells)} |"


_HEAD = (
    "| router | hit % real | simulated | TTFT mean s real | simulated | error % | whole answer s real | simulated |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|"
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 when the simulator was right."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router_truth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("trace", metavar="TRACE", type=Path, help="a file in Mooncake's format")
    add_arguments(SimulationConfig, parser)
    namespace = parser.parse_args(argv)
    try:
        config = from_namespace(SimulationConfig, namespace)
        comparisons = [compare(namespace.trace, config, mode) for mode in config.modes()]
    except (BenchmarkError, DynamoError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\n".join([_HEAD, *(comparison.row() for comparison in comparisons)]))
    return int(not all(comparison.holds for comparison in comparisons))


def compare(trace: Path, config: SimulationConfig, mode: SimulatedMode) -> Comparison:
    """Takes as long as the trace lasts at the given rate. Raises BenchmarkError when a process fails."""
    if config.arrivals != Arrivals.TRACE:
        raise ConfigError("only the trace's own arrivals are replayed")
    requests = read_trace(trace, limit=config.limit, block_size=config.trace_block_size)
    return Comparison(real=_replay(trace, config, mode, requests), simulated=simulate(config, mode, requests))


def _replay(
    trace: Path, config: SimulationConfig, mode: SimulatedMode, requests: Sequence[TraceRequest]
) -> ReplaySample:
    rate_per_s = config.rate or trace_rate_per_s(requests)
    job = ReplayJob(
        trace=str(trace.resolve()),
        limit=len(requests),
        trace_block_size=config.trace_block_size,
        rate_per_s=rate_per_s,
        endpoint=_ENDPOINT,
        model=_MODEL,
        workers=config.workers,
        mode=mode,
        kv_router=config.kv_router,
        block_size=config.block_size,
    )
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-") as directory, programs() as started:
        for name, content in byte_level_files().items():
            (Path(directory) / name).write_bytes(content)
        names = [f"worker{number}" for number in range(config.workers)]
        for name in names:
            started.start(name, "dynamo.mocker", *_worker_arguments(directory, config.engine(requests)))
        for name in names:
            started.wait_until_ready(name)
        timeout_s = len(requests) / rate_per_s + _LONGEST_ANSWER_S
        return started.drive("benchmarks.router_replay", job, ReplaySample, timeout_s)


def _worker_arguments(model_dir: str, engine: SchedulerConfig) -> list[str]:
    return [
        *("--model-path", model_dir, "--model-name", _MODEL, "--max-model-len", str(engine.max_model_len)),
        *("--block-size", str(engine.block_size), "--num-gpu-blocks-override", str(engine.num_blocks)),
        *("--max-num-seqs", str(engine.max_num_seqs), "--max-num-batched-tokens", str(engine.max_num_batched_tokens)),
        *("--max-num-waiting", str(engine.max_num_waiting)),
    ]


if __name__ == "__main__":
    sys.exit(main())
