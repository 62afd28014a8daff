"""What engines and the block manager's service say to each other, over a Unix socket of one host.

A frame is its length (u32, little-endian) and a msgpack message. Keys of blocks are KEY_BYTES each, names the hashes
by which routers know them (`dynamo.tokens`: u64, little-endian); of both, several travel one after the other.
"""

from enum import StrEnum

import msgspec

KEY_BYTES = 32  # of a block's content and all before it, as the engine digests it
FRAME_BYTES_MAX = 8 << 20
KVBM_VERSION = 1


class StorageTier(StrEnum):
    """Where a block is kept when it is not in the engine's own memory."""

    HOST = "host"
    DISK = "disk"
    OBJECT = "object"
    PEER = "peer"


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which blocks can stand for each other: those of equal specs, and no others."""

    namespace: bytes  # 16 bytes, see dynamo.kvbm.namespace
    description: str  # of the same, for people: model, dtype, layout
    rank_bytes: int  # of a block, at each rank of the engine
    ranks: int = 1  # of tensor and pipeline parallelism, together
    block_tokens: int


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How large a pool is to be and what lies below it. The first engine that attaches decides."""

    host_bytes: int
    disk_bytes: int = 0
    disk_dir: str = ""
    object_url: str = ""
    peers: bool = False
    policy: str = "tinylfu"
    disk_filter: str = "none"  # or frequency: what was asked for again goes to the disk
    disk_offload: str = "write-through"  # or on-evict
    onboard_timeout_ms: int = 1000  # how long a request may wait for blocks from below the host


class Attach(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=0):
    """The first message of an engine: of its scheduler (no rank), or of a rank, which only maps the memory.

    An engine's connections have one owner. What it holds is free again when all of them are closed, and no sooner: as
    long as one is open, somebody may write.
    """

    version: int
    owner: str  # unique to an engine's start
    pool: PoolSpec
    options: PoolOptions
    rank: int | None = None


class LookUp(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """How many of these blocks, from the first on, can be had within `wait_ms`? Those are kept until released."""

    id: int
    keys: bytes
    wait_ms: int


class Release(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Nobody reads what these lookups found any more, or waits for it."""

    lookups: list[int]


class Commit(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """These granted slots are filled, at all ranks."""

    slots: list[int]
    keys: bytes
    names: bytes


class Discard(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """These granted slots go back unfilled. Nobody writes into them any more."""

    slots: list[int]


class Report(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=5):
    """What an engine's copies have cost since its last report."""

    onboarded_blocks: int = 0
    onboard_s: float = 0.0
    offloaded_blocks: int = 0
    offload_s: float = 0.0
    dropped_offloads: int = 0  # blocks that were not kept, because no slot was granted in time


class Follow(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=6):
    """The first message of the process around an engine: what is in the pool of this owner, from now on."""

    version: int
    owner: str


class Inspect(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The first message of who administers the service: all its pools."""


class Clear(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=8):
    """Forgets what these tiers hold, of all pools or of those of one namespace."""

    tiers: list[StorageTier]
    namespace: bytes = b""


class Verify(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=9):
    """Reads what the disk holds and compares checksums; drops what does not match."""

    namespace: bytes = b""


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """The service is to end."""


Request = Attach | LookUp | Release | Commit | Discard | Report | Follow | Inspect | Clear | Verify | Stop


class Attached(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=100):
    """The pool's memory comes along, as a descriptor. Slot i begins at i * slot_bytes."""

    slots: int
    slot_bytes: int
    memory_bytes: int
    pool: str = ""  # names the engine's part in this memory: it has another when all its connections were closed


class Granted(msgspec.Struct, frozen=True, array_like=True, tag=101):
    """These slots are the engine's to fill."""

    slots: list[int]


class Found(msgspec.Struct, frozen=True, array_like=True, tag=102):
    """The slots of the blocks that can be read now, and how many of the next are under way.

    The last answer to a lookup has none under way. It comes after `wait_ms` at the latest.
    """

    lookup: int
    slots: list[int]
    coming: int
    tiers: list[int]  # how many of `slots` were found in host memory, on disk, in the object store, at a peer


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=103):
    """The connection is of no use; it is closed next."""

    code: str
    message: str


class TierChanges(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=104):
    """What has come to a tier and left it, by name. The first of a follower tells all there is."""

    tier: StorageTier
    stored: bytes = b""
    removed: bytes = b""
    reset: bool = False  # forget what was told of this tier before


class TierFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One tier of a pool. Counters begin with the pool."""

    tier: StorageTier
    state: str  # ready, opening, or why it is not used
    blocks: int = 0
    used_bytes: int = 0
    capacity_bytes: int = 0  # 0: without limit, or not ours to know
    hits: int = 0  # blocks
    misses: int = 0
    stored_blocks: int = 0
    fetched_blocks: int = 0
    evicted_blocks: int = 0
    write_s: float = 0.0
    read_s: float = 0.0
    written_bytes: int = 0
    read_bytes: int = 0
    checksum_failures: int = 0
    errors: int = 0
    queued: int = 0


class PoolFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One pool."""

    namespace: bytes
    description: str
    slot_bytes: int
    block_tokens: int
    engines: int
    tiers: list[TierFigures]
    held_slots: int = 0  # of host memory, that somebody fills or reads; engines have some at hand to fill
    lookups: int = 0
    onboarded_blocks: int = 0
    onboard_s: float = 0.0
    offloaded_blocks: int = 0
    offload_s: float = 0.0
    dropped_offloads: int = 0
    dropped_writes: int = 0  # blocks that were to go further down, and left host memory or the queue before
    late_lookups: int = 0  # that were answered with less than there is, for want of time


class Figures(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=105):
    """To followers, of their pool, about once a second; to who inspects, of all, once."""

    pools: list[PoolFigures]


class Done(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=106):
    """Clear, Verify or Stop is done."""

    checked: int = 0
    dropped: int = 0


Reply = Attached | Granted | Found | Refused | TierChanges | Figures | Done
