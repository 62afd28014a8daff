"""Reading all that a pool's disk holds, and dropping what is not what was written."""

import asyncio
from collections.abc import Sequence

from dynamo.errors import OverloadedError
from dynamo.kvbm.pool_shell import PoolShell
from dynamo.kvbm.storage.base import Copy, Outcome, Stored
from dynamo.kvbm.tier_runner import BATCH_BLOCKS
from dynamo.protocols.kvbm import Done, Granted, Reply, StorageTier

_TIER = StorageTier.DISK
_GRANT_TIMEOUT_S = 10.0


async def verify(pool: PoolShell) -> Done:
    """Reads into slots that are granted to it as to an engine.

    Raises DynamoError when none are granted, or the disk is not used.
    """
    if _TIER not in pool.runners:
        return Done()
    granted: list[int] = []
    arrived = asyncio.Event()

    def on_reply(reply: Reply) -> None:
        if isinstance(reply, Granted):
            granted.extend(reply.slots)
            arrived.set()

    session = pool.attach(on_reply)
    try:
        async with asyncio.timeout(_GRANT_TIMEOUT_S):
            await arrived.wait()
        blocks = list(pool.manager.snapshot(_TIER))
        slots = granted[:BATCH_BLOCKS]
        batches = [blocks[i : i + len(slots)] for i in range(0, len(blocks), len(slots))]
        dropped = [await _check(pool, slots, batch) for batch in batches]
        return Done(checked=len(blocks), dropped=sum(dropped))
    except TimeoutError:
        raise OverloadedError("no host memory is free to read blocks into") from None
    finally:
        pool.detach(session)


async def _check(pool: PoolShell, slots: Sequence[int], blocks: Sequence[Stored]) -> int:
    """How many were dropped. What has left the tier meanwhile, its place being another's, is none of them."""
    suspects = await _not_read(pool, slots, blocks)
    suspects = await _not_read(pool, slots, suspects) if suspects else []
    return sum(pool.drop(_TIER, block) for block in suspects)


async def _not_read(pool: PoolShell, slots: Sequence[int], blocks: Sequence[Stored]) -> list[Stored]:
    copies = [Copy(slot, block) for slot, block in zip(slots, blocks, strict=False)]
    outcomes = await pool.runner(_TIER).read_into(copies)
    return [copy.block for copy, outcome in zip(copies, outcomes, strict=True) if outcome is not Outcome.READ]
