"""What a worker says about the blocks in its KV cache.

A block is named by its sequence hash (`dynamo.tokens`), computed at the worker: a listener needs neither the tokens nor
the engine's own names. LoRA adapter and cache salt are part of the hash. Hashes travel as bytes, u64 little-endian one
after the other.
"""

from enum import IntEnum

import msgspec

HASH_BYTES = 8


class Tier(IntEnum):
    """The memory in which a block lies, fastest first."""

    DEVICE = 0
    HOST = 1
    DISK = 2


class BlockStored(msgspec.Struct, array_like=True, omit_defaults=True, frozen=True, tag=0):
    """These blocks can be found in the cache from now on. They need not be consecutive."""

    hashes: bytes
    tier: Tier = Tier.DEVICE


class BlockRemoved(msgspec.Struct, array_like=True, omit_defaults=True, frozen=True, tag=1):
    """These blocks have left this tier."""

    hashes: bytes
    tier: Tier = Tier.DEVICE


class AllBlocksCleared(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """The cache is empty, on every tier."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KvEventBatch(msgspec.Struct, array_like=True, frozen=True):
    """What one engine step did to the cache of one data-parallel rank, in order.

    The parts of a dump are batches too, which hold nothing but BlockStored.
    """

    dp_rank: int
    events: list[KvEvent]
