"""`python -m benchmarks.kvbm`: what KV blocks beyond the device's memory gain, and what they cost, with a real vLLM.

Minutes: it starts an engine for each part. Parts can be named; without any, all are measured.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import kvbm_copy, kvbm_cost, kvbm_ttft, kvbm_turns
from benchmarks.machine import CORES, cpu_model
from dynamo.llm.model_source import resolve_model

PARTS = ("ttft", "peer", "turns", "cost", "copy")
PROMPT_TOKENS = 1500


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kvbm", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--model", default="smollm2", help="what to serve (default: smollm2)")
    parser.add_argument("--rounds", type=int, default=5, help="of ttft and peer (default: 5)")
    parser.add_argument("--turn-rounds", type=int, default=1, help="of turns (default: 1)")
    parser.add_argument("--pairs", type=int, default=kvbm_cost.PAIRS, help="of cost (default: 9)")
    parser.add_argument("--directory", type=Path, help="where disk and object tiers are (default: a temporary one)")
    arguments = parser.parse_args(argv)
    model = str(resolve_model(arguments.model, weights=True))
    print(f"{CORES} cores of {cpu_model()}; {arguments.model}")
    with tempfile.TemporaryDirectory(prefix="dynamo-kvbm-", dir=arguments.directory) as directory:
        for part in arguments.parts or PARTS:
            print(f"\n## {part}\n", flush=True)
            print(asyncio.run(_measure(part, model, Path(directory) / part, arguments)), flush=True)
    return 0


async def _measure(part: str, model: str, directory: Path, arguments: argparse.Namespace) -> str:
    match part:
        case "ttft":
            samples = await kvbm_ttft.measure(model, directory, PROMPT_TOKENS, arguments.rounds)
            return "\n".join([kvbm_ttft.table(samples), "", *kvbm_ttft.verdicts(samples)])
        case "peer":
            return kvbm_ttft.table(await kvbm_ttft.measure_peer(model, directory, PROMPT_TOKENS, arguments.rounds))
        case "turns":
            return kvbm_turns.table(await kvbm_turns.measure(model, directory, arguments.turn_rounds))
        case "cost":
            return kvbm_cost.report(await kvbm_cost.measure(model, directory, arguments.pairs))
        case _:
            return kvbm_copy.report(kvbm_copy.measure())


if __name__ == "__main__":
    sys.exit(main())
