"""`python -m benchmarks.kernel`: the router's hot loops, hashing and matching prompts and applying events.

The index holds a million blocks of 64 workers. Events come in batches of 32 blocks, as `RadixTree.apply` takes them.
Each figure is CPU time, of prompts the best of many rounds; each kernel has a process of its own.
"""

import os
import random
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Sequence

import msgspec

from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import BlockRemoved, BlockStored, KvEvent, Tier
from dynamo.router.kernel import KERNEL, VARIABLE, sequence_hashes
from dynamo.router.radix_tree import RadixTree
from dynamo.tokens import HashArray, TokenArray, hashes_to_bytes, token_array

WORKERS = [WorkerId(instance) for instance in range(64)]
BLOCKS = 1_000_000
BATCH = 32
BLOCK_SIZE = 16
LONG_PROMPT_TOKENS = 100_000
SHORT_PROMPT_BLOCKS = 60
ROUNDS = 30
ONE = "--one"  # measure the kernel of this process, for the table of another

Events = Sequence[tuple[WorkerId, KvEvent]]


class Row(msgspec.Struct, frozen=True):
    """What one kernel took."""

    name: str
    seconds: float
    blocks: int | None = None  # in all, for a rate


def main(argv: Sequence[str] | None = None) -> int:
    if ONE in (sys.argv[1:] if argv is None else argv):
        sys.stdout.buffer.write(msgspec.json.encode((KERNEL.name, measure())))
        return 0
    results = dict(_measure_apart(wanted) for wanted in ("", "python"))
    print(render(results))
    return 0


def measure() -> list[Row]:
    """Every row, with the kernel of this process."""
    rng = random.Random(1)  # noqa: S311 - no secrets here
    batches = [rng.randbytes(8 * BATCH) for _ in range(BLOCKS // BATCH)]
    tree = RadixTree()
    _apply(tree, _of_workers([BlockStored(batch) for batch in batches], 0))
    return [*_prompts(tree, rng), *_events(batches)]


def render(results: dict[str, list[Row]]) -> str:
    """A markdown table, a column for each kernel."""
    lines = [f"| | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    lines += [f"| {rows[0].name} | {' | '.join(map(_figure, rows))} |" for rows in zip(*results.values(), strict=True)]
    return "\n".join(lines)


def _figure(row: Row) -> str:
    if row.blocks is None:
        return f"{row.seconds * 1e6:,.1f} µs"
    return f"{row.blocks / row.seconds / 1e6:.1f} M blocks/s"


def _measure_apart(wanted: str) -> tuple[str, list[Row]]:
    done = subprocess.run(  # noqa: S603 - this very file
        [sys.executable, "-m", "benchmarks.kernel", ONE],
        env={**os.environ, VARIABLE: wanted},
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=tuple[str, list[Row]])


def _events(batches: Sequence[bytes]) -> Iterable[Row]:
    stored = _of_workers([BlockStored(batch) for batch in batches], 0)
    elsewhere = _of_workers([BlockStored(batch) for batch in batches], 1)
    on_host = _of_workers([BlockStored(batch, Tier.HOST) for batch in batches], 0)
    removed = _of_workers([BlockRemoved(batch) for batch in batches], 1)
    tree = RadixTree()
    seconds = [_apply(tree, events) for events in (stored, elsewhere, on_host, removed)]
    for name, took_s in zip(("new", "known, of another worker", "on a second tier", "removed"), seconds, strict=True):
        yield Row(f"events: {name}", took_s, BLOCKS)
    small = RadixTree(BLOCKS // 2)
    _apply(small, stored)
    yield Row("events: new, each making another one leave", _apply(small, stored), BLOCKS)


def _of_workers(events: Sequence[KvEvent], shift: int) -> Events:
    return [(WORKERS[(i + shift) % len(WORKERS)], event) for i, event in enumerate(events)]


def _apply(tree: RadixTree, events: Events) -> float:
    apply = tree.apply
    start_s = time.process_time()
    for worker, event in events:
        apply(worker, event)
    return time.process_time() - start_s


def _prompts(tree: RadixTree, rng: random.Random) -> Iterable[Row]:
    prompt = token_array(rng.randrange(128_000) for _ in range(LONG_PROMPT_TOKENS))
    as_list = prompt.tolist()
    hashes = sequence_hashes(prompt, BLOCK_SIZE)
    _spread(tree, hashes)
    name = f"{LONG_PROMPT_TOKENS:,} tokens"
    yield Row(f"{name}: hash", _best(lambda: sequence_hashes(prompt, BLOCK_SIZE)))
    yield Row(f"{name}: match", _best(lambda: tree.find_matches(hashes)))
    yield Row(f"{name}: hash and match", _best(lambda: tree.hash_and_match(prompt, BLOCK_SIZE)))
    yield Row(f"{name}, a list: hash and match", _best(lambda: tree.hash_and_match(token_array(as_list), BLOCK_SIZE)))
    shorts = [_short(rng) for _ in range(200)]
    for short in shorts:
        _spread(tree, sequence_hashes(short, BLOCK_SIZE))
    name = f"{SHORT_PROMPT_BLOCKS} blocks, of which each worker holds some"
    yield Row(f"{name}: hash and match", _best(lambda: _all(tree, shorts)) / len(shorts))


def _short(rng: random.Random) -> TokenArray:
    return array("I", rng.randbytes(4 * SHORT_PROMPT_BLOCKS * BLOCK_SIZE))


def _spread(tree: RadixTree, hashes: HashArray) -> None:
    """Each worker holds more of it than the one before, the last one all."""
    for i, worker in enumerate(WORKERS, 1):
        tree.apply(worker, BlockStored(hashes_to_bytes(hashes[: len(hashes) * i // len(WORKERS)])))


def _all(tree: RadixTree, prompts: Sequence[TokenArray]) -> None:
    for prompt in prompts:
        tree.hash_and_match(prompt, BLOCK_SIZE)


def _best(call: Callable[[], object]) -> float:
    times_s = []
    for _ in range(ROUNDS):
        start_s = time.process_time()
        call()
        times_s.append(time.process_time() - start_s)
    return min(times_s)


if __name__ == "__main__":
    sys.exit(main())
