"""`python -m benchmarks.transfer`: how fast each backend of dynamo.transfer moves scattered blocks between processes.

A batch of blocks is read from another process into other places here, all of them random. Beside it stand a memcpy of
the same list of blocks within this process, and the bytes of the batch sent through a plain socket in one piece. All
memory has been touched and is many times larger than the caches. Everything takes turns, round after round; a figure
is the median of the rounds.
"""

import argparse
import asyncio
import base64
import ctypes
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

import uvloop

from benchmarks.process_tree import cpu_s
from dynamo.runtime.parent import follow_parent
from dynamo.transfer import Agent, Blocks, Region
from dynamo.transfer.backends import BACKENDS

MEMORY_MB = 512  # of each process
BATCHES = [(2, 64), (16, 64), (64, 64), (256, 64), (64, 256), (256, 1024)]  # MB in all, KB per block
ROUNDS = 9
LATENCY_ROUNDS = 300
LATENCY_BYTES = 64 << 10
_PEER = "--peer"


@dataclass(slots=True, kw_only=True)
class Figures:
    """Of one way to move a batch."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)  # of both processes

    def gb_per_s(self, size_bytes: int) -> float:
        return size_bytes / median(self.seconds) / 1e9

    def cpu_s_per_gb(self, size_bytes: int) -> float:
        return sum(self.cpu_s) / len(self.cpu_s) / size_bytes * 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Where the blocks of one round are."""

    here: list[int]
    there: list[int]
    block_bytes: int

    @property
    def size_bytes(self) -> int:
        return len(self.here) * self.block_bytes


class Peer:
    """The other process."""

    def __init__(self, backends: Sequence[str]) -> None:
        command = [sys.executable, "-m", "benchmarks.transfer", _PEER, str(MEMORY_MB), *backends]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)  # noqa: S603
        assert self._process.stdout is not None
        self.metadata = base64.b64decode(self._process.stdout.readline())
        self.plain_port = int(self._process.stdout.readline())

    def cpu_s(self) -> float:
        return cpu_s(self._process.pid)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@asynccontextmanager
async def linked(backend: str, memory: bytearray, peer: Peer) -> AsyncIterator[tuple[Agent, Region]]:
    """An agent that has that backend only."""
    async with Agent(f"near-{backend}", [backend]) as agent:
        agent.add_peer(peer.metadata)
        yield agent, agent.register(memory)


async def measure(backends: Sequence[str], rounds: int) -> str:
    """The tables."""
    rng = random.Random(0)  # noqa: S311 - no secrets here
    memory, source = touched(MEMORY_MB), touched(MEMORY_MB)
    peer = Peer(backends)
    try:
        async with AsyncExitStack() as stack:
            ways: dict[str, Callable[[Batch], Awaitable[None]]] = {"memcpy": _memcpy(memory, source)}
            agents = {name: await stack.enter_async_context(linked(name, memory, peer)) for name in backends}
            ways |= {name: _read(agent, region) for name, (agent, region) in agents.items()}
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", peer.plain_port)))
            ways["plain socket"] = _receive(plain, memory)
            rows = [await _row(ways, peer, batch, rng, rounds) for batch in BATCHES]
            latencies = {name: await _latency_us(way, rng) for name, way in ways.items()}
    finally:
        peer.close()
    return "\n".join([*_heading(ways), *rows, "", *_latency_table(latencies)])


def touched(size_mb: int) -> bytearray:
    return bytearray(random.Random(size_mb).randbytes(1 << 20)) * size_mb  # noqa: S311


async def _row(
    ways: dict[str, Callable[[Batch], Awaitable[None]]],
    peer: Peer,
    batch: tuple[int, int],
    rng: random.Random,
    rounds: int,
) -> str:
    megabytes, block_kb = batch
    figures = {name: Figures() for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            made = _batch(rng, megabytes << 20, block_kb << 10)
            cpu = peer.cpu_s()
            own_cpu = time.process_time()
            started_s = time.perf_counter()
            await way(made)
            seconds = time.perf_counter() - started_s
            own_cpu = time.process_time() - own_cpu
            if turn:  # the first one finds its connections
                figures[name].seconds.append(seconds)
                figures[name].cpu_s.append(own_cpu + peer.cpu_s() - cpu)
    size_bytes = megabytes << 20
    base = figures["memcpy"].gb_per_s(size_bytes)
    cells = [
        f"{each.gb_per_s(size_bytes):.2f} ({each.gb_per_s(size_bytes) / base:.2f}), {each.cpu_s_per_gb(size_bytes):.2f}"
        for each in figures.values()
    ]
    return f"| {megabytes} | {block_kb} | " + " | ".join(cells) + " |"


def _batch(rng: random.Random, size_bytes: int, block_bytes: int) -> Batch:
    slots = range((MEMORY_MB << 20) // block_bytes)
    count = size_bytes // block_bytes
    here, there = rng.sample(slots, count), rng.sample(slots, count)
    return Batch(here=[block_bytes * i for i in here], there=[block_bytes * i for i in there], block_bytes=block_bytes)


def _memcpy(memory: bytearray, source: bytearray) -> Callable[[Batch], Awaitable[None]]:
    to, start = (ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in (memory, source))

    async def copy(batch: Batch) -> None:
        size_bytes = batch.block_bytes
        for here, there in zip(batch.here, batch.there, strict=True):
            ctypes.memmove(to + here, start + there, size_bytes)

    return copy


def _read(agent: Agent, region: Region) -> Callable[[Batch], Awaitable[None]]:
    async def read(batch: Batch) -> None:
        remote = Blocks.of("far", 0, batch.there, [batch.block_bytes] * len(batch.there))
        await agent.read(region.blocks(batch.here, batch.block_bytes), remote)

    return read


def _receive(plain: socket.socket, memory: bytearray) -> Callable[[Batch], Awaitable[None]]:
    async def receive(batch: Batch) -> None:
        plain.sendall(batch.size_bytes.to_bytes(8, "little"))
        view = memoryview(memory)[: batch.size_bytes]
        while view:
            view = view[plain.recv_into(view) :]

    return receive


async def _latency_us(way: Callable[[Batch], Awaitable[None]], rng: random.Random) -> float:
    """Of one block, the median."""
    seconds = []
    for _ in range(LATENCY_ROUNDS):
        batch = _batch(rng, LATENCY_BYTES, LATENCY_BYTES)
        started_s = time.perf_counter()
        await way(batch)
        seconds.append(time.perf_counter() - started_s)
    return 1e6 * median(seconds)


def _heading(ways: Sequence[str] | dict[str, Callable[[Batch], Awaitable[None]]]) -> list[str]:
    titles = [f"{name}: GB/s (of memcpy), CPU s/GB" for name in ways]
    return ["| MB | KB per block | " + " | ".join(titles) + " |", "|--:|--:|" + "--:|" * len(titles)]


def _latency_table(latencies: dict[str, float]) -> list[str]:
    cells = " | ".join(f"{latency:.0f}" for latency in latencies.values())
    return [
        "| one block of 64 KB, µs | " + " | ".join(latencies) + " |",
        "|--|" + "--:|" * len(latencies),
        f"| median | {cells} |",
    ]


async def _serve(size_mb: int, backends: list[str]) -> None:
    """The other process: has memory, and does nothing else."""
    follow_parent()
    async with Agent("far", backends) as agent:
        memory = agent.allocate(size_mb << 20).view()  # which all backends reach
        memory[:] = touched(size_mb)
        print(base64.b64encode(agent.metadata()).decode(), flush=True)
        listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=_send_plainly, args=(listening, memory), daemon=True).start()
        print(listening.getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


def _send_plainly(listening: socket.socket, memory: memoryview) -> None:
    connection, _ = listening.accept()
    while asked := connection.recv(8, socket.MSG_WAITALL):
        connection.sendall(memory[: int.from_bytes(asked, "little")])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("backends", nargs="*", default=list(BACKENDS), help="default: all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(_PEER, type=int, metavar="MB", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.peer is not None:
        uvloop.run(_serve(arguments.peer, arguments.backends))
    else:
        print(uvloop.run(measure(arguments.backends, arguments.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
