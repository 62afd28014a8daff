"""`dynamo simulate`: what a router makes of a trace, without any engine."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dynamo.config import build_parser, from_namespace
from dynamo.errors import DynamoError
from dynamo.simulator.config import SimulationConfig
from dynamo.simulator.report import COLUMNS, TIER_COLUMNS, table
from dynamo.simulator.simulation import simulate
from dynamo.simulator.trace import best_hit_ratio, distinct_blocks, read_trace

PROG = "dynamo simulate"


def main(argv: Sequence[str]) -> int:
    parser = build_parser(SimulationConfig, prog=PROG)
    parser.add_argument("trace", metavar="TRACE", type=Path, help="a file of JSON lines")
    namespace = parser.parse_args(argv)
    try:
        _compare(namespace.trace, from_namespace(SimulationConfig, namespace))
    except DynamoError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _compare(trace: Path, config: SimulationConfig) -> None:
    requests = read_trace(trace, limit=config.limit, block_size=config.trace_block_size)
    config.engine(requests), config.tiers()  # say what is wrong before anything is shown
    print(
        f"{len(requests):,} requests, {sum(request.prompt_tokens for request in requests):,} prompt tokens in"
        f" {distinct_blocks(requests):,} different blocks;"
        f" one endless cache would hit {100 * best_hit_ratio(requests, config.trace_block_size):.2f} %\n"
    )
    summaries = []
    for mode in config.modes():
        print(f"simulating {mode} ...", file=sys.stderr, flush=True)
        summaries.append(simulate(config, mode, requests))
    print(table(summaries, COLUMNS + TIER_COLUMNS if config.kvbm.is_enabled else COLUMNS))
