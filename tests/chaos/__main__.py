"""`scripts/chaos [--seconds N] [--seed S] [--brokers]`: disturbs a fleet under load; says what was lost."""

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from dynamo.testing.tiny_model import byte_level_files

from .fleet import Size
from .report import table
from .run import each, run

SEED_MAX = 1_000_000


def main() -> int:
    """0 if nothing was lost, wrong, or left."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of the schedule and of what is asked (default: any)")
    parser.add_argument("--each", type=int, metavar="TIMES", help="instead: one kind of fault after the other")
    parser.add_argument("--brokers", action="store_true", help="with etcd and NATS, which are disturbed too")
    arguments = parser.parse_args()
    size = Size(brokers=arguments.brokers)
    seed = random.randrange(SEED_MAX) if arguments.seed is None else arguments.seed
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory)
        for name, content in byte_level_files().items():
            (model / name).write_bytes(content)
        if arguments.each:
            return asyncio.run(_each(model, size, seed, arguments.each))
        report = asyncio.run(run(model, size, seed=seed, seconds=arguments.seconds, say=_say))
    _say(str(report))
    return 0 if report.clean else 1


async def _each(model: Path, size: Size, seed: int, times: int) -> int:
    reports = []
    async for report in each(model, size, seed=seed, times=times, say=_say):
        _say(str(report))
        reports.append(report)
    _say(table(reports))
    return 0 if all(report.clean for report in reports) else 1


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
