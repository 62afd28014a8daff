"""`python -m benchmarks.transfer_gpu`: reads between the memories of a GPU that two processes have allocated, by NIXL.

Scattered blocks are read into other places. Needs a CUDA GPU, torch and NIXL.
"""

import argparse
import asyncio
import base64
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

import torch

from dynamo.runtime.parent import follow_parent
from dynamo.transfer import Agent, Blocks

MEMORY_MB = 512  # of each process
BLOCK_KB = 256
SIZES_MB = (2, 16, 64, 256)
_SERVE = "--serve"


async def measure(rounds: int) -> str:
    """A table, and whether all bytes were right."""
    command = [sys.executable, "-m", "benchmarks.transfer_gpu", _SERVE]
    peer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220, S603 - before the event loop has work
    try:
        assert peer.stdout is not None
        metadata = base64.b64decode(peer.stdout.readline())
        async with Agent("near", ["nixl"]) as agent:
            memory = torch.zeros_like(_memory())
            region = agent.register(memory)
            agent.add_peer(metadata)
            rng = random.Random(0)  # noqa: S311 - no secrets here
            rows = []
            for megabytes in SIZES_MB:
                slots, count = range((MEMORY_MB << 10) // BLOCK_KB), (megabytes << 10) // BLOCK_KB
                seconds = []
                for turn in range(rounds + 1):
                    here, there = rng.sample(slots, count), rng.sample(slots, count)
                    size_bytes = BLOCK_KB << 10
                    remote = Blocks.of("far", 0, [size_bytes * i for i in there], [size_bytes] * count)
                    started_s = time.perf_counter()
                    await agent.read(region.blocks([size_bytes * i for i in here], size_bytes), remote)
                    if turn:  # the first one finds its connections
                        seconds.append(time.perf_counter() - started_s)
                expected = _memory().view(len(slots), -1)
                right = torch.equal(memory.view(len(slots), -1)[here], expected[there])
                rows.append(f"| {megabytes} | {(megabytes << 20) / median(seconds) / 1e9:.1f} | {right} |")
    finally:
        peer.kill()
        peer.communicate()
    head = [f"{torch.cuda.get_device_name()}, blocks of {BLOCK_KB} KB, median of {rounds}", ""]
    return "\n".join([*head, "| MB | GB/s | right |", "|--:|--:|--|", *rows])


async def _serve() -> None:
    """The other process: has memory, and does nothing else."""
    follow_parent()
    async with Agent("far", ["nixl"]) as agent:
        memory = _memory()
        torch.cuda.synchronize()
        agent.register(memory)
        print(base64.b64encode(agent.metadata()).decode(), flush=True)
        await asyncio.get_running_loop().create_future()


def _memory() -> torch.Tensor:
    return torch.arange(MEMORY_MB << 18, dtype=torch.int32, device="cuda")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer_gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="reads of each size (default: 5)")
    parser.add_argument(_SERVE, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(f"{parser.prog}: needs an NVIDIA GPU, and a torch that is built for it", file=sys.stderr)
        return 1
    if arguments.serve:
        asyncio.run(_serve())
        return 0
    print(asyncio.run(measure(arguments.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
