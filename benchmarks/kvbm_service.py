"""Block managers for benchmarks: each at a socket of its own, started and stopped by the benchmark."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.programs import BenchmarkError
from dynamo.kvbm.admin import ask
from dynamo.kvbm.config import KvbmOptions
from dynamo.kvbm.launch import ensure_service
from dynamo.protocols.kvbm import Clear, Figures, Inspect, PoolFigures, Stop, StorageTier, TierFigures
from dynamo.runtime.config import RuntimeConfig

_LINGER_S = 60.0  # should the benchmark not live to stop it
_ASK_S = 30.0
_SETTLE_S = 60.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class BlockManager:
    """One that runs, with the flags by which an engine uses it."""

    socket: Path
    flags: Sequence[str]

    def pool(self) -> PoolFigures:
        """Its only one."""
        reply = ask(self.socket, Inspect(), _ASK_S)
        assert isinstance(reply, Figures)
        [pool] = reply.pools
        return pool

    def tier(self, tier: StorageTier) -> TierFigures:
        return next(figures for figures in self.pool().tiers if figures.tier == tier)

    def clear(self, *tiers: StorageTier) -> None:
        ask(self.socket, Clear(tiers=list(tiers)), _ASK_S)

    async def has_stored(self, tier: StorageTier, blocks: int) -> None:
        """Waits until that many blocks have ever come to the tier; BenchmarkError when they do not."""
        deadline_s = time.monotonic() + _SETTLE_S
        while (await asyncio.to_thread(self.tier, tier)).stored_blocks < blocks:
            if time.monotonic() > deadline_s:
                raise BenchmarkError(f"the {tier} tier does not get its blocks: {self.pool()}")
            await asyncio.sleep(_POLL_S)


@contextmanager
def block_manager(directory: Path, *flags: str, runtime: RuntimeConfig | None = None) -> Iterator[BlockManager]:
    """`flags` are those of a worker, --kvbm-host-gb and others."""
    socket = directory / "kvbm.sock"
    directory.mkdir(parents=True, exist_ok=True)
    options = KvbmOptions(host_gb=1.0, socket=str(socket), linger_s=_LINGER_S)  # an engine says what it needs
    ensure_service(options, runtime or RuntimeConfig())
    try:
        yield BlockManager(socket, ("--kvbm-socket", str(socket), *flags))
    finally:
        ask(socket, Stop(), _ASK_S)
