"""`python -m benchmarks.disagg_overhead`: what two legs cost, where neither computing nor transfers take any time.

Two stacks stand side by side, one with two aggregated workers, one with a prefill and a decode worker, and are measured
by turns: what disturbs the machine disturbs both.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.http_load import HttpSample
from benchmarks.machine import cpu_model
from benchmarks.prompt import build_prompt
from benchmarks.stack import AGGREGATED, DISAGGREGATED, OUTPUT_TOKENS, Stack, serving
from dynamo.llm.model_source import resolve_model

PROMPT_TOKENS = 1000
CONCURRENCIES = (1, 16)
_WARM_UP_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One turn of both stacks at one concurrency."""

    aggregated: HttpSample
    disaggregated: HttpSample

    @property
    def added_ttft_ms(self) -> float:
        return self.disaggregated.ttft_p50_ms - self.aggregated.ttft_p50_ms

    @property
    def cpu_ratio(self) -> float:
        """Of the frontend's CPU time per request."""
        return _frontend_us(self.disaggregated) / _frontend_us(self.aggregated)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disagg_overhead", description=__doc__)
    parser.add_argument("--model", default="smollm2", help="whose tokenizer to use (default: smollm2)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each stack (default: 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn (default: 3)")
    arguments = parser.parse_args(argv)
    model_dir = resolve_model(arguments.model, weights=False)
    prompt = build_prompt(model_dir, PROMPT_TOKENS)
    no_time = 0.0  # at any other speed a step takes a tick of the event loop at least, and two legs have more steps
    with (
        serving(model_dir, prompt, speedup=no_time, fleet=AGGREGATED) as one,
        serving(model_dir, prompt, speedup=no_time, fleet=DISAGGREGATED) as other,
    ):
        pairs = {c: _pairs(one, other, c, arguments.rounds, arguments.seconds) for c in CONCURRENCIES}
    print(f"{cpu_model()}; {PROMPT_TOKENS} tokens in, {OUTPUT_TOKENS} out; medians of {arguments.rounds} turns\n")
    print(table(pairs))
    return 0


def table(pairs: dict[int, list[Pair]]) -> str:
    """A markdown table, one concurrency a row."""
    lines = [
        "| streams | TTFT ms aggregated | disaggregated | more | frontend CPU µs per request aggregated | disaggregated"
        " | ratio | other CPU % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for concurrency, measured in pairs.items():
        one, other = [pair.aggregated for pair in measured], [pair.disaggregated for pair in measured]
        cells = [
            f"{concurrency}",
            f"{median(sample.ttft_p50_ms for sample in one):.2f}",
            f"{median(sample.ttft_p50_ms for sample in other):.2f}",
            f"{median(pair.added_ttft_ms for pair in measured):.2f}",
            f"{median(map(_frontend_us, one)):.0f}",
            f"{median(map(_frontend_us, other)):.0f}",
            f"{median(pair.cpu_ratio for pair in measured):.2f}",
            f"{max(sample.foreign_percent for sample in one + other):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _pairs(one: Stack, other: Stack, concurrency: int, rounds: int, seconds: float) -> list[Pair]:
    pairs = []
    for turn in range(rounds):
        print(f"{turn + 1}/{rounds} c={concurrency}", file=sys.stderr, flush=True)
        aggregated = one.measure(concurrency, warm_up_s=_WARM_UP_S, seconds=seconds)
        disaggregated = other.measure(concurrency, warm_up_s=_WARM_UP_S, seconds=seconds)
        pairs.append(Pair(aggregated=aggregated, disaggregated=disaggregated))
    return pairs


def _frontend_us(sample: HttpSample) -> float:
    return sample.frontend_cpu_s * 1e6 / sample.requests


if __name__ == "__main__":
    sys.exit(main())
