import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.kvbm.slot import ALIGN_BYTES, HEADER_BYTES, SlotHeader, is_intact, seal, slot_bytes

NAMESPACE, KEY, PAYLOAD = b"n" * 16, b"k" * 32, 300


def sealed() -> bytearray:
    slot = bytearray(slot_bytes(PAYLOAD))
    slot[HEADER_BYTES : HEADER_BYTES + PAYLOAD] = os.urandom(PAYLOAD)
    seal(memoryview(slot), namespace=NAMESPACE, key=KEY, name=2**64 - 1, payload_bytes=PAYLOAD)
    return slot


def intact(slot: bytearray, namespace: bytes = NAMESPACE, key: bytes = KEY, payload_bytes: int = PAYLOAD) -> bool:
    return is_intact(memoryview(slot), namespace=namespace, key=key, payload_bytes=payload_bytes)


def test_what_was_sealed_is_intact_and_says_what_it_is() -> None:
    slot = sealed()
    assert intact(slot)
    header = SlotHeader.read(memoryview(slot))
    assert header is not None
    assert (header.namespace, header.key, header.name) == (NAMESPACE, KEY, 2**64 - 1)
    assert header.payload_bytes == PAYLOAD


def test_each_changed_byte_is_found() -> None:
    slot = sealed()
    header_end = 8 + 16 + 32 + 8 + 8 + 16  # the rest up to HEADER_BYTES is unused
    for at in (*range(header_end), *range(HEADER_BYTES, HEADER_BYTES + PAYLOAD)):
        slot[at] ^= 1
        assert not intact(slot), f"byte {at}"
        slot[at] ^= 1
    assert intact(slot)


def test_another_key_namespace_or_size_is_found() -> None:
    slot = sealed()
    assert not intact(slot, key=b"x" * 32)
    assert not intact(slot, namespace=b"x" * 16)
    assert not intact(slot, payload_bytes=PAYLOAD - 1)


def test_exchanged_headers_are_found() -> None:
    one, other = sealed(), sealed()
    one[:HEADER_BYTES], other[:HEADER_BYTES] = other[:HEADER_BYTES], one[:HEADER_BYTES]
    assert not intact(one)
    assert not intact(other)


@pytest.mark.parametrize("slot", [bytes(4096), b"\xff" * 4096])
def test_what_is_no_block_has_no_header(slot: bytes) -> None:
    assert SlotHeader.read(memoryview(slot)) is None
    assert not intact(bytearray(slot))


@settings(max_examples=50)
@given(payload=st.integers(1, 1 << 24))
def test_a_slot_is_as_small_as_its_alignment_allows(payload: int) -> None:
    size = slot_bytes(payload)
    assert size % ALIGN_BYTES == 0
    assert 0 <= size - payload - HEADER_BYTES < ALIGN_BYTES
