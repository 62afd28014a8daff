"""`python -m benchmarks.kvbm_lookup`: what a lookup costs, asked through the socket and in the manager alone."""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from benchmarks.kvbm_service import block_manager
from benchmarks.machine import CORES, cpu_model
from benchmarks.process_tree import pss_mib
from dynamo.engines.vllm.ownership import descendants
from dynamo.kvbm.client import ServiceClient
from dynamo.kvbm.effects import Grant
from dynamo.kvbm.manager import BlockManager, ManagerConfig
from dynamo.kvbm.storage.base import Stored
from dynamo.protocols.kvbm import KEY_BYTES, KVBM_VERSION, Attach, PoolOptions, PoolSpec

BLOCKS = 50  # of a lookup through the socket: a prompt of 1,500 tokens
LOOKUPS = 2000
POOL_BYTES = 16 << 20
MANAGED = 1000  # blocks, of one lookup and of one run of commits
ROUNDS = 40


def main() -> int:
    print(f"{CORES} cores of {cpu_model()}")
    with tempfile.TemporaryDirectory(prefix="dynamo-kvbm-") as directory, block_manager(Path(directory)) as manager:
        spent_ms = _through_the_socket(manager.socket)
        memory_mib = sum(map(pss_mib, descendants(os.getpid())))
    p99_ms = quantiles(spent_ms, n=100)[98]
    print(f"lookup of {BLOCKS} blocks through the socket: p50 {median(spent_ms):.3f} ms, p99 {p99_ms:.3f} ms")
    print(f"the service's memory: {memory_mib:.0f} MiB, of which {POOL_BYTES >> 20} are the pool")
    commit_ms, look_up_ms = _in_the_manager()
    print(f"manager, {MANAGED} blocks: commit {commit_ms:.2f} ms, look up {look_up_ms:.2f} ms, medians of {ROUNDS}")
    return 0


def _through_the_socket(path: Path) -> list[float]:
    spec = PoolSpec(namespace=bytes(16), description="benchmark", rank_bytes=4096, block_tokens=32)
    options = PoolOptions(host_bytes=POOL_BYTES)
    client = ServiceClient(path, Attach(version=KVBM_VERSION, owner="benchmark", pool=spec, options=options))
    while client.granted < BLOCKS:
        client.poll(1.0)
    keys = b"".join(map(_key, range(BLOCKS)))
    client.commit(client.take_slots(BLOCKS), keys, bytes(8 * BLOCKS))
    spent_ms = []
    for _ in range(LOOKUPS):
        began_s = time.perf_counter()
        lookup = client.look_up(keys, 0)
        assert lookup is not None, "the service is gone"
        while (found := client.answer(lookup)) is None:
            client.poll(1.0)
        spent_ms.append(1e3 * (time.perf_counter() - began_s))
        assert len(found.slots) == BLOCKS
        client.release([lookup])
    client.close()
    return spent_ms


def _in_the_manager() -> tuple[float, float]:
    """Of `MANAGED` blocks: milliseconds to commit them, and to look them up."""
    commits, lookups = [], []
    for number in range(ROUNDS):
        manager = BlockManager(ManagerConfig(slot_bytes=4096, grant_slots=MANAGED), [], 16 * MANAGED)
        manager.attach(0)
        slots = [slot for effect in manager.take_effects() if isinstance(effect, Grant) for slot in effect.slots]
        blocks = [Stored(_key(index), index) for index in range(MANAGED)]
        began_s = time.perf_counter()
        for slot, block in zip(slots, blocks, strict=True):
            manager.commit(0, slot, block, 0.0)
        commits.append(1e3 * (time.perf_counter() - began_s))
        manager.take_effects()
        began_s = time.perf_counter()
        manager.look_up(0, number, [block.key for block in blocks], 0.0, 0.0)
        lookups.append(1e3 * (time.perf_counter() - began_s))
    return median(commits), median(lookups)


def _key(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES, "little")


if __name__ == "__main__":
    sys.exit(main())
