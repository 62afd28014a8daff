"""Messages as vLLM publishes them, into events for routers."""

from typing import Any

import msgspec
import pytest

from dynamo.engines.vllm.kv_events import KvEventTranslator
from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, KvEventBatch, Tier
from dynamo.tokens import HashArray, block_seed, hash_array, hashes_to_bytes, sequence_hashes, token_array

# Recorded from vLLM 0.32.0: two blocks stored with a salt, both removed, the cache reset.
RECORDED = (
    b"\x93\xcb?\xf8\x00\x00\x00\x00\x00\x00\x94\x8b\xa4type\xabBlockStored\xacblock_hashes\x92\xcf\xfe\xdc\xba\x98vT2"
    b"\x10\x02\xb1parent_block_hash\xc0\xa9token_ids\x98\x00\x01\x02\x03\x04\x05\x06\x07\xaablock_size\x04\xa7lora_id"
    b"\xc0\xa6medium\xa3GPU\xa9lora_name\xc0\xaaextra_keys\x92\x91\xa4salt\xc0\xa9group_idx\x00\xb2kv_cache_spec_kind"
    b"\xaefull_attention\x84\xa4type\xacBlockRemoved\xacblock_hashes\x91\x02\xa6medium\xa3GPU\xa9group_idx\x00\x84\xa4"
    b"type\xacBlockRemoved\xacblock_hashes\x91\xcf\xfe\xdc\xba\x98vT2\x10\xa6medium\xa3GPU\xa9group_idx\x00\x81\xa4type"
    b"\xb0AllBlocksCleared\x00"
)
SIZE = 4
TOKENS = list(range(20))
NAMES = sequence_hashes(token_array(TOKENS), SIZE)  # of five blocks; vLLM calls them 10, 11, ...


def message(*events: Any, dp_rank: int | None = 0) -> bytes:
    return msgspec.msgpack.encode([1.5, events] if dp_rank is None else [1.5, events, dp_rank])


def block_stored(start: int, stop: int, **fields: Any) -> dict[str, Any]:
    """Blocks `start` to `stop` of TOKENS."""
    event = {
        "type": "BlockStored",
        "block_hashes": list(range(10 + start, 10 + stop)),
        "parent_block_hash": 9 + start if start else None,
        "token_ids": TOKENS[start * SIZE : stop * SIZE],
        "block_size": SIZE,
        "medium": "GPU",
        "group_idx": 0,
    }
    return event | fields


def block_removed(*hashes: int, **fields: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU", "group_idx": 0} | fields


def stored(hashes: HashArray, tier: Tier = Tier.DEVICE) -> BlockStored:
    return BlockStored(hashes_to_bytes(hashes), tier)


def removed(hashes: HashArray, tier: Tier = Tier.DEVICE) -> BlockRemoved:
    return BlockRemoved(hashes_to_bytes(hashes), tier)


@pytest.fixture
def translator() -> KvEventTranslator:
    return KvEventTranslator(0, SIZE)


def translated(translator: KvEventTranslator, *events: Any) -> list[KvEvent]:
    return translator.translate(message(*events)).events


def test_recorded(translator: KvEventTranslator) -> None:
    salted = sequence_hashes(token_array(TOKENS[:8]), SIZE, block_seed(cache_salt="salt"))
    batch = translator.translate(RECORDED)
    assert batch == KvEventBatch(0, [stored(salted), removed(hash_array(reversed(salted))), AllBlocksCleared()])
    assert (translator.malformed, translator.names.unnamed) == (0, 0)


def test_sequence_that_grows(translator: KvEventTranslator) -> None:
    assert translated(translator, block_stored(0, 2)) == [stored(NAMES[:2])]
    assert translated(translator, block_stored(2, 3), block_stored(3, 5)) == [stored(NAMES[2:3]), stored(NAMES[3:])]
    assert translated(translator, block_removed(14), block_removed(13)) == [removed(hash_array([NAMES[4], NAMES[3]]))]


def test_copies_of_a_block(translator: KvEventTranslator) -> None:
    """Two requests have computed it at the same time; it is there until both copies are gone."""
    assert translated(translator, block_stored(0, 1), block_stored(0, 1)) == [stored(NAMES[:1])]
    assert translated(translator, block_removed(10)) == []
    assert translated(translator, block_removed(10)) == [removed(NAMES[:1])]


def test_names_may_be_bytes(translator: KvEventTranslator) -> None:
    events = [
        block_stored(0, 2, block_hashes=[b"a" * 32, b"b" * 32]),
        block_stored(2, 3, block_hashes=[b"c" * 32], parent_block_hash=b"b" * 32),
    ]
    assert translated(translator, *events) == [stored(NAMES[:2]), stored(NAMES[2:3])]


def test_tiers(translator: KvEventTranslator) -> None:
    """Blocks that are copied to another tier are told by their names alone."""
    placeholder = {"token_ids": [], "block_size": 0, "parent_block_hash": None}
    events = [
        block_stored(0, 2),
        block_stored(0, 2, medium="CPU", **placeholder),
        block_removed(10, 11),
        block_stored(0, 1, medium="STORAGE", **placeholder),
        block_removed(10, medium="CPU"),
    ]
    assert translated(translator, *events) == [
        stored(NAMES[:2]),
        stored(NAMES[:2], Tier.HOST),
        removed(NAMES[:2]),
        stored(NAMES[:1], Tier.DISK),
        removed(NAMES[:1], Tier.HOST),
    ]


def test_removals_of_different_tiers_stay_apart(translator: KvEventTranslator) -> None:
    translated(translator, block_stored(0, 2), block_stored(0, 2, medium="CPU"))
    events = [block_removed(10), block_removed(10, medium="CPU"), block_removed(11, medium="CPU")]
    assert translated(translator, *events) == [removed(NAMES[:1]), removed(NAMES[:2], Tier.HOST)]


@pytest.mark.parametrize("fields", [{"medium": "TAPE"}, {"medium": "STORAGE", "locality": "REMOTE"}])
def test_places_that_are_not_ours(translator: KvEventTranslator, fields: dict[str, str]) -> None:
    assert translated(translator, block_stored(0, 1, **fields), block_removed(10, **fields)) == []
    assert translator.malformed == 0


class TestExtraKeys:
    def test_adapter_and_salt(self, translator: KvEventTranslator) -> None:
        events = [
            block_stored(0, 2, lora_name="adapter", extra_keys=[["adapter", "salt"], ["adapter"]]),
            block_stored(2, 3, lora_name="adapter", extra_keys=[["adapter"]]),
        ]
        names = sequence_hashes(token_array(TOKENS), SIZE, block_seed("adapter", "salt"))
        assert translated(translator, *events) == [stored(names[:2]), stored(names[2:3])]

    def test_salt_that_is_called_like_the_adapter(self, translator: KvEventTranslator) -> None:
        event = block_stored(0, 1, lora_name="x", extra_keys=[["x", "x"]])
        names = sequence_hashes(token_array(TOKENS[:4]), SIZE, block_seed("x", "x"))
        assert translated(translator, event) == [stored(names)]

    @pytest.mark.parametrize("keys", [[["image", 0]], [b"digest of embeddings"], ["salt", b"digest"], ["not first"]])
    def test_blocks_of_more_than_tokens(self, translator: KvEventTranslator, keys: list[Any]) -> None:
        """Tokens do not name them, nor what follows them."""
        event = block_stored(0, 3, extra_keys=[None, keys, None])
        assert translated(translator, event, block_stored(3, 4)) == [stored(NAMES[:1])]
        assert translator.names.unnamed == 3
        assert translated(translator, block_removed(10, 11, 12, 13)) == [removed(NAMES[:1])]


class TestGroups:
    """Models with several kinds of attention have blocks of each."""

    def test_kind_that_needs_the_whole_prefix_is_followed(self, translator: KvEventTranslator) -> None:
        events = [
            block_stored(0, 1, group_idx=0, kv_cache_spec_kind="sliding_window", kv_cache_spec_sliding_window=8),
            block_stored(0, 1, group_idx=1, kv_cache_spec_kind="mamba"),
            block_stored(0, 1, group_idx=2, kv_cache_spec_kind="full_attention"),
            block_stored(0, 1, group_idx=3, kv_cache_spec_kind="full_attention"),
            block_removed(10, group_idx=0),
            block_removed(10, group_idx=3),
        ]
        assert translated(translator, *events) == [stored(NAMES[:1])]
        assert translated(translator, block_removed(10, group_idx=2)) == [removed(NAMES[:1])]

    def test_group_that_is_not_told(self, translator: KvEventTranslator) -> None:
        events = [block_stored(0, 1, group_idx=None), block_removed(10, group_idx=None)]
        assert translated(translator, *events) == [stored(NAMES[:1]), removed(NAMES[:1])]


def test_other_block_size_than_on_the_card(translator: KvEventTranslator, caplog: pytest.LogCaptureFixture) -> None:
    event = block_stored(0, 1, token_ids=list(range(8)), block_size=8)
    assert translated(translator, event, event) == []
    assert translator.names.unnamed == 2
    assert "they have 8 tokens, where the model card says 4" in caplog.text


def test_defaults_may_be_left_out(translator: KvEventTranslator) -> None:
    event = {"type": "BlockStored", "block_hashes": [10], "token_ids": TOKENS[:4], "block_size": 4}
    batch = translator.translate(message(event, {"type": "BlockRemoved", "block_hashes": [10]}, dp_rank=None))
    assert batch.events == [stored(NAMES[:1]), removed(NAMES[:1])]


def test_what_a_later_vllm_may_add(translator: KvEventTranslator) -> None:
    events = [{"type": "BlockPromoted", "x": 1}, block_stored(0, 1, colour="red", nested={"a": [1]})]
    payload = msgspec.msgpack.encode([1.5, events, 0, "more"])
    assert translator.translate(payload).events == [stored(NAMES[:1])]
    assert translator.malformed == 0


@pytest.mark.parametrize(
    "event",
    [
        None,
        17,
        {},
        {"type": 5},
        {"type": "BlockStored"},
        block_stored(0, 1) | {"token_ids": "abcd"},
        block_stored(0, 1) | {"token_ids": [1, 2, 3, -1]},
        block_stored(0, 1) | {"token_ids": [1, 2, 3, 2**32]},
        block_removed() | {"block_hashes": [1.5]},
    ],
)
def test_events_that_cannot_be_read(
    translator: KvEventTranslator, event: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """They are dropped, with a warning; the others are not."""
    assert translated(translator, event, block_stored(0, 1), event) == [stored(NAMES[:1])]
    assert translator.malformed == 2
    assert len(caplog.records) == 1


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x01", b"\x90", b"\x92\x01\x02", RECORDED[:-1]])
def test_messages_that_cannot_be_read(translator: KvEventTranslator, payload: bytes) -> None:
    assert translator.translate(payload).events == []
    assert translator.malformed == 1


def test_clearing(translator: KvEventTranslator) -> None:
    translated(translator, block_stored(0, 2))
    assert translator.clear() == KvEventBatch(0, [AllBlocksCleared()])
    assert translated(translator, block_removed(10), block_stored(2, 3)) == []
    assert translated(translator, block_stored(0, 1)) == [stored(NAMES[:1])]


def test_rank_is_that_of_the_source() -> None:
    assert KvEventTranslator(3, SIZE).translate(message(block_stored(0, 1))).dp_rank == 3
