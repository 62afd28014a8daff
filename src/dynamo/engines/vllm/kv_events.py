"""vLLM's KV events, translated into ours. Pure.

vLLM publishes a msgpack array [time, events, data-parallel rank]; an event is a map with its name under "type", in
which default values are left out. It speaks of each physical block: two copies of one block have one hash and are
stored and removed one by one. In a model with several kinds of attention, it speaks of the blocks of each kind. Its
offloading copies chunks of one or more blocks to host memory or a disk, and names all blocks of a chunk if it is asked
to (see KvEventPlane).
"""

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from dynamo.protocols.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    KvEventBatch,
    Tier,
)
from dynamo.router.block_names import BlockNames, EngineHash
from dynamo.tokens import HashArray, block_seed, hash_array, hashes_to_bytes, token_array

logger = logging.getLogger(__name__)

_TIERS = {None: Tier.DEVICE, "GPU": Tier.DEVICE, "CPU": Tier.HOST, "STORAGE": Tier.DISK, "DISK": Tier.DISK}
# Other kinds use a prefix in part only. None: vLLM does not say.
_WHOLE_PREFIX = (None, "full_attention", "mla_attention", "sink_full_attention", "unknown")


class _Batch(msgspec.Struct, array_like=True):
    time_s: float
    events: list[msgspec.Raw]  # each by itself, so that an unknown one does not spoil the others
    dp_rank: int | None = None


class _Kind(msgspec.Struct):
    type: str


class _Place(msgspec.Struct):
    """What all events about blocks have."""

    block_hashes: list[EngineHash]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None  # REMOTE: not with this worker


class _Stored(_Place):
    parent_block_hash: EngineHash | None = None
    token_ids: list[int] = []
    block_size: int = 0  # tokens
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None  # for each block, see _salt_and_length()
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None  # tokens


class KvEventTranslator:
    """Follows the events of one data-parallel rank."""

    def __init__(self, dp_rank: int, block_size: int) -> None:
        """`block_size` in tokens as routers know it, from the model card."""
        self.malformed = 0  # batches and events that could not be read
        self.names = BlockNames(copies=True)
        self._dp_rank = dp_rank
        self._block_size = block_size
        self._group: int | None = None  # the one group of blocks that is followed, once it is known
        self._batches = msgspec.msgpack.Decoder(_Batch)
        self._kinds = msgspec.msgpack.Decoder(_Kind)
        self._stored = msgspec.msgpack.Decoder(_Stored)
        self._places = msgspec.msgpack.Decoder(_Place)

    def translate(self, payload: bytes) -> KvEventBatch:
        """What a message says that concerns routers, which may be nothing."""
        events: list[KvEvent] = []
        try:
            batch = self._batches.decode(payload)
        except msgspec.MsgspecError as error:
            self._drop(error)
            return KvEventBatch(self._dp_rank, events)
        for event in batch.events:
            try:
                self._translate(event, events)
            except (msgspec.MsgspecError, OverflowError) as error:  # the latter for a token id that is none
                self._drop(error)
        return KvEventBatch(self._dp_rank, _joined(events))

    def clear(self) -> KvEventBatch:
        """Events were missed: nothing is known for certain any more."""
        self.names.clear()
        return KvEventBatch(self._dp_rank, [AllBlocksCleared()])

    def _translate(self, encoded: msgspec.Raw, events: list[KvEvent]) -> None:
        match self._kinds.decode(encoded).type:
            case "BlockStored":
                stored = self._stored.decode(encoded)
                tier = self._tier(stored)
                if tier is not None and self._is_followed(stored) and (hashes := self._names_of(stored, tier)):
                    events.append(BlockStored(hashes_to_bytes(hashes), tier))
            case "BlockRemoved":
                removed = self._places.decode(encoded)
                tier = self._tier(removed)
                if tier is not None and removed.group_idx in (None, self._group):
                    hashes = self.names.removed(removed.block_hashes, tier)
                    if hashes:
                        events.append(BlockRemoved(hashes_to_bytes(hashes), tier))
            case "AllBlocksCleared":
                self.names.clear()
                events.append(AllBlocksCleared())
            case _:
                pass  # a later vLLM may have more to say

    def _drop(self, error: Exception) -> None:
        self.malformed += 1
        if self.malformed == 1:
            logger.warning("some of vLLM's KV events cannot be read, they are dropped: %s", error)

    def _tier(self, place: _Place) -> Tier | None:
        """None for what is out of our sight."""
        if place.locality == "REMOTE":
            return None
        if place.medium not in _TIERS:
            self.names.drop(len(place.block_hashes), f"there is no tier for vLLM's {place.medium!r}")
        return _TIERS.get(place.medium)

    def _is_followed(self, stored: _Stored) -> bool:
        if stored.kv_cache_spec_kind not in _WHOLE_PREFIX or stored.kv_cache_spec_sliding_window is not None:
            return False
        if self._group is None:
            self._group = stored.group_idx
        return stored.group_idx in (None, self._group)

    def _names_of(self, stored: _Stored, tier: Tier) -> HashArray:
        if tier is not Tier.DEVICE and stored.extra_keys is None:
            # vLLM's offloading tells tokens at best, not what else is in a block. What it copies is in use on the
            # device, where all has been told.
            return self.names.stored(token_array(), 0, stored.block_hashes, tier=tier)
        if stored.token_ids and stored.block_size != self._block_size:
            self.names.drop(
                len(stored.block_hashes),
                f"they have {stored.block_size} tokens, where the model card says {self._block_size}",
            )
            return hash_array()
        salt, length = _salt_and_length(stored)
        if length < len(stored.block_hashes):
            self.names.drop(len(stored.block_hashes) - length, "they are made of more than tokens, of images perhaps")
        whole = length == len(stored.block_hashes)
        return self.names.stored(
            token_array(stored.token_ids if whole else stored.token_ids[: length * stored.block_size]),
            stored.block_size,
            stored.block_hashes[:length],
            stored.parent_block_hash,
            seed=block_seed(stored.lora_name, salt),
            tier=tier,
        )


def _salt_and_length(stored: _Stored) -> tuple[str | None, int]:
    """The salt of a sequence that begins here, and how many of the blocks are made of nothing but tokens.

    A block's extra keys are the adapter's name, then a pair for each image and the like in it, then in the first block
    of a sequence the salt, then digests of embeddings.
    """
    salt: str | None = None
    if stored.extra_keys is None:
        return None, len(stored.block_hashes)
    for position, (_, keys) in enumerate(zip(stored.block_hashes, stored.extra_keys, strict=False)):
        rest: Sequence[Any] = keys or ()
        if rest and stored.lora_name and rest[0] == stored.lora_name:
            rest = rest[1:]
        if position == 0 and stored.parent_block_hash is None and len(rest) == 1 and isinstance(rest[0], str):
            salt = rest[0]
        elif rest:
            return salt, position
    return salt, len(stored.block_hashes)


def _joined(events: list[KvEvent]) -> list[KvEvent]:
    """The same, neighbours of one kind and tier in one: vLLM reports each evicted block by itself."""
    joined: list[KvEvent] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, BlockRemoved) and isinstance(last, BlockRemoved) and event.tier == last.tier:
            joined[-1] = BlockRemoved(last.hashes + event.hashes, event.tier)
        else:
            joined.append(event)
    return joined
