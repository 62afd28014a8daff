"""`python -m benchmarks.decision`: the CPU time of a KV routing decision, hashing of the prompt included.

The first half of each prompt is one of many that all workers hold, the other half is its own. Workers have requests in
flight.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from dynamo.protocols.generation import WorkerId
from dynamo.router.config import KvRouterConfig
from dynamo.router.kernel import KERNEL
from dynamo.router.radix_tree import RadixTree
from dynamo.router.routing import RoutingRequest, WorkerLimits
from dynamo.router.scheduler import KvScheduler
from dynamo.tokens import TokenArray, sequence_hashes, token_array

PREFIXES = 64
IN_FLIGHT = 4  # requests of each worker
_WARM_UP = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One row of the table."""

    workers: int
    prompt_tokens: int
    block_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Median CPU microseconds: what a busy machine adds now and then is not the router's."""

    decision_us: float  # hashing, matching and counting the blocks in use included
    hash_and_match_us: float
    rest_of_life_us: float  # the first token, and the end with its blocks


POINTS = [Point(workers=workers, prompt_tokens=1000, block_size=16) for workers in (1, 4, 16, 64)]


def measure(point: Point, decisions: int) -> Sample:
    """Decides that often, each time with the same number of requests in flight."""
    rng = random.Random(0)  # noqa: S311 - no secrets here
    tree = RadixTree()
    scheduler = KvScheduler(KvRouterConfig(), point.block_size, rng, tree, lambda _: True)
    workers = [WorkerId(rng.getrandbits(53)) for _ in range(point.workers)]
    scheduler.set_workers(dict.fromkeys(workers, WorkerLimits()))
    prefixes = [_tokens(rng, point.prompt_tokens // 2) for _ in range(PREFIXES)]
    for prefix in prefixes:
        for worker in workers:
            tree.store(worker, sequence_hashes(prefix, point.block_size))
    prompts = [rng.choice(prefixes) + _tokens(rng, point.prompt_tokens // 2) for _ in range(decisions + _WARM_UP)]
    requests = [RoutingRequest(request_id=str(i), token_ids=prompt) for i, prompt in enumerate(prompts)]

    in_flight = IN_FLIGHT * point.workers
    decide_ns: list[int] = []
    life_ns: list[int] = []
    for number, request in enumerate(requests):
        now_s = number / 100
        started_ns = time.process_time_ns()
        scheduler.submit(request, now_s)
        decided_ns = time.process_time_ns()
        scheduler.first_token(str(number - in_flight // 2), now_s)
        scheduler.free(str(number - in_flight))
        decide_ns.append(decided_ns - started_ns)
        life_ns.append(time.process_time_ns() - decided_ns)
    return Sample(
        decision_us=median(decide_ns[_WARM_UP:]) / 1e3,
        hash_and_match_us=median(_lookups_ns(tree, prompts, point.block_size)) / 1e3,
        rest_of_life_us=median(life_ns[_WARM_UP:]) / 1e3,
    )


def _lookups_ns(tree: RadixTree, prompts: Sequence[TokenArray], block_size: int) -> Iterator[int]:
    for prompt in prompts:
        started_ns = time.process_time_ns()
        tree.hash_and_match(prompt, block_size)
        yield time.process_time_ns() - started_ns


def _tokens(rng: random.Random, count: int) -> TokenArray:
    return token_array(rng.getrandbits(17) for _ in range(count))


def render(samples: Sequence[tuple[Point, Sample]]) -> str:
    """A table in Markdown."""
    lines = [
        f"Median CPU µs of a decision, {KERNEL.name} kernel",
        "",
        "| workers | prompt tokens | block size | decision | of which hash and match | first token and end |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for point, sample in samples:
        lines.append(
            f"| {point.workers} | {point.prompt_tokens} | {point.block_size} | {sample.decision_us:.0f} |"
            f" {sample.hash_and_match_us:.0f} | {sample.rest_of_life_us:.0f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decision", description=(__doc__ or "").strip())
    parser.add_argument("--decisions", metavar="N", type=int, default=3000, help="per row (default: %(default)s)")
    options = parser.parse_args(argv)
    print(render([(point, measure(point, options.decisions)) for point in POINTS]))


if __name__ == "__main__":
    main()
