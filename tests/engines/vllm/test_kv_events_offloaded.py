"""What vLLM's offloading says of blocks that it copies to host memory, made and encoded by vLLM's own code."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from dynamo.engines.vllm.kv_events import KvEventTranslator
from dynamo.protocols.kv_events import BlockRemoved, BlockStored, KvEvent, Tier
from dynamo.tokens import HashArray, block_seed, hash_array, hashes_to_bytes, sequence_hashes, token_array

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # importing vLLM and torch warns a lot

SIZE = 4  # tokens in a block of the device
TOKENS = list(range(24))
HASHES = [bytes([block]) * 32 for block in range(1, 7)]  # vLLM's own names of the six blocks
NAMES = sequence_hashes(token_array(TOKENS), SIZE)
SALTED = sequence_hashes(token_array(TOKENS), SIZE, block_seed(cache_salt="salt"))


class Vllm:
    """The part of vLLM's scheduler that speaks of KV blocks, for one request and chunks of `blocks_per_chunk`."""

    def __init__(
        self, blocks_per_chunk: int, *, group: int = 0, describes: bool = True, sliding_window: int | None = None
    ) -> None:
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.events import (
            OffloadingEventGroupSpec,
            OffloadingEventsTracker,
        )
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import GroupOffloadConfig
        from vllm.v1.kv_offload.base import OffloadingKVEventsConfig

        self._tracker = OffloadingEventsTracker(
            OffloadingKVEventsConfig(enable_kv_cache_events=True, self_describing_kv_events=describes)
        )
        self._request = SimpleNamespace(block_hashes=HASHES, all_token_ids=TOKENS, lora_request=None)
        self._per_chunk = blocks_per_chunk
        self._group = GroupOffloadConfig(
            group_idx=group,
            tokens_per_block=SIZE,
            tokens_per_chunk=SIZE * blocks_per_chunk,
            hashes_per_chunk=blocks_per_chunk,
            kv_event_group_spec=OffloadingEventGroupSpec("full_attention", None),
            sliding_window_size_in_chunks=sliding_window,
            kv_cache_spec=None,
            manager_cls=None,
        )

    def device(self, start: int, stop: int, salt: str | None = None) -> Any:
        """What vLLM says when blocks have been computed."""
        from vllm.distributed.kv_events import MEDIUM_GPU, BlockStored
        from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash, to_event_extra_keys

        keys = [(("cache_salt", salt),) if salt and block == 0 else None for block in range(start, stop)]
        return BlockStored(
            block_hashes=[maybe_convert_block_hash(block) for block in HASHES[start:stop]],
            parent_block_hash=maybe_convert_block_hash(HASHES[start - 1]) if start else None,
            token_ids=TOKENS[start * SIZE : stop * SIZE],
            block_size=SIZE,
            lora_id=None,
            medium=MEDIUM_GPU,
            lora_name=None,
            extra_keys=to_event_extra_keys(keys),
            group_idx=0,
            kv_cache_spec_kind="full_attention",
        )

    def gone(self, *blocks: int) -> list[Any]:
        """What it says when blocks have left the device."""
        from vllm.distributed.kv_events import MEDIUM_GPU, BlockRemoved
        from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

        return [
            BlockRemoved(block_hashes=[maybe_convert_block_hash(HASHES[block])], medium=MEDIUM_GPU, group_idx=0)
            for block in blocks
        ]

    def offloaded(self, *chunks: int, medium: str = "CPU") -> list[Any]:
        for chunk in chunks:
            self._tracker.record_store(self._request, self._group, chunk, self._key(chunk))
        return self._events(chunks, medium, removed=False)

    def dropped(self, *chunks: int, medium: str = "CPU") -> list[Any]:
        return self._events(chunks, medium, removed=True)

    def _events(self, chunks: Iterable[int], medium: str, *, removed: bool) -> list[Any]:
        from vllm.v1.kv_offload.base import Locality, Medium, OffloadingEvent

        keys = [self._key(chunk) for chunk in chunks]
        event = OffloadingEvent(
            keys=keys, medium=Medium(medium), removed=removed, locality=Locality.LOCAL, removal_expected=True
        )
        return list(self._tracker.take_events([event]))

    def _key(self, chunk: int) -> Any:
        from vllm.v1.kv_offload.base import make_offload_key

        return make_offload_key(HASHES[(chunk + 1) * self._per_chunk - 1], self._group.group_idx)


@pytest.fixture
def translator() -> KvEventTranslator:
    return KvEventTranslator(0, SIZE)


def translated(translator: KvEventTranslator, *events: Any) -> list[KvEvent]:
    from vllm.distributed.kv_events import KVEventBatch

    batch = KVEventBatch(ts=1.0, events=list(events), data_parallel_rank=0)
    return translator.translate(msgspec.msgpack.Encoder().encode(batch)).events  # as ZmqEventPublisher does


def stored(hashes: HashArray, tier: Tier) -> BlockStored:
    return BlockStored(hashes_to_bytes(hashes), tier)


def removed(hashes: HashArray, tier: Tier) -> BlockRemoved:
    return BlockRemoved(hashes_to_bytes(hashes), tier)


@pytest.mark.parametrize("blocks_per_chunk", [1, 2, 3])
def test_all_blocks_of_a_chunk(translator: KvEventTranslator, blocks_per_chunk: int) -> None:
    vllm = Vllm(blocks_per_chunk)
    chunks = range(6 // blocks_per_chunk)
    translated(translator, vllm.device(0, 6))
    told = [stored(NAMES[chunk * blocks_per_chunk : (chunk + 1) * blocks_per_chunk], Tier.HOST) for chunk in chunks]
    assert translated(translator, *vllm.offloaded(*chunks)) == told
    # One by one off the device, then off the host, together.
    assert translated(translator, *vllm.gone(5, 4, 3, 2, 1, 0)) == [removed(hash_array(reversed(NAMES)), Tier.DEVICE)]
    assert translated(translator, *vllm.dropped(*chunks)) == [removed(NAMES, Tier.HOST)]
    assert (translator.malformed, translator.names.unnamed, len(translator.names)) == (0, 0, 0)


def test_two_tiers_below_the_device(translator: KvEventTranslator) -> None:
    vllm = Vllm(2)
    translated(translator, vllm.device(0, 6), *vllm.offloaded(0, 1), *vllm.gone(0, 1, 2, 3, 4, 5))
    assert translated(translator, *vllm.offloaded(1, medium="STORAGE"), *vllm.dropped(0, 1)) == [
        stored(NAMES[2:4], Tier.DISK),
        removed(NAMES[:4], Tier.HOST),
    ]


def test_salt_that_offloading_does_not_tell(translator: KvEventTranslator) -> None:
    """The names stay those that the device has told."""
    vllm = Vllm(2)
    assert translated(translator, vllm.device(0, 2, salt="salt")) == [stored(SALTED[:2], Tier.DEVICE)]
    assert translated(translator, *vllm.offloaded(0)) == [stored(SALTED[:2], Tier.HOST)]
    assert translated(translator, *vllm.gone(0, 1)) == [removed(SALTED[:2], Tier.DEVICE)]
    assert translated(translator, *vllm.dropped(0)) == [removed(SALTED[:2], Tier.HOST)]


def test_nothing_is_guessed_of_blocks_that_were_never_on_the_device(translator: KvEventTranslator) -> None:
    """Their tokens alone do not say what they are."""
    vllm = Vllm(3)
    assert translated(translator, *vllm.offloaded(0), *vllm.dropped(0)) == []
    assert translator.names.unnamed == 3


def test_without_descriptions_only_the_end_of_a_chunk_is_known(translator: KvEventTranslator) -> None:
    """Why KvEventPlane asks for them."""
    vllm = Vllm(3, describes=False)
    translated(translator, vllm.device(0, 6))
    assert translated(translator, *vllm.offloaded(0, 1)) == [stored(NAMES[i : i + 1], Tier.HOST) for i in (2, 5)]
    assert translated(translator, *vllm.dropped(0)) == [removed(NAMES[2:3], Tier.HOST)]


def test_groups_that_are_not_followed(translator: KvEventTranslator) -> None:
    """vLLM does not describe the blocks of a sliding window: their names are all that it tells."""
    translated(translator, Vllm(2).device(0, 6))
    window = Vllm(2, group=1, sliding_window=4)
    assert translated(translator, *window.offloaded(0, 1), *window.dropped(0)) == []
    assert (translator.malformed, translator.names.unnamed) == (0, 0)
