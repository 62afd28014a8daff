"""Frames and payloads: what goes in comes out, however the bytes are cut, and nothing else gets in."""

import contextlib
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from dynamo.errors import ErrorInfo, ProtocolError, RequestTooLargeError
from dynamo.runtime.codec import (
    DEFAULT_MAX_FRAME_BYTES,
    PAYLOAD_ERRORS,
    Call,
    Credit,
    End,
    FrameReader,
    GoAway,
    Hello,
    Item,
    Message,
    Ping,
    Pong,
    Proof,
    Stop,
    encode_frame,
    encode_payload,
    payload_decoder,
)
from dynamo.tokens import TokenArray, token_array

INTEGERS = st.integers(-(2**63), 2**64 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | TEXT | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
STREAM_IDS = st.integers(0, 2**32)
PAYLOADS = VALUES.map(lambda value: Raw(encode_payload(value)))
ERRORS = st.none() | st.builds(ErrorInfo, code=TEXT, message=TEXT, param=st.none() | TEXT, error_type=st.none() | TEXT)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, st.integers(0, 255), TEXT, st.binary(max_size=32)),
    st.builds(
        Call,
        STREAM_IDS,
        TEXT,
        TEXT,
        st.integers(0, 2**31),
        st.none() | st.floats(allow_nan=False),
        st.none() | TEXT,
        st.dictionaries(TEXT, TEXT, max_size=3),
        PAYLOADS,
    ),
    st.builds(Item, STREAM_IDS, PAYLOADS),
    st.builds(End, STREAM_IDS, ERRORS),
    st.builds(Stop, STREAM_IDS, st.booleans()),
    st.builds(Credit, STREAM_IDS, st.integers(0, 2**31)),
    st.builds(Ping, st.floats(allow_nan=False)),
    st.builds(Pong),
    st.builds(GoAway, ERRORS),
    st.builds(Proof, st.binary(max_size=32)),
)


class Batch(msgspec.Struct):
    token_ids: TokenArray
    name: str = ""


def wire(frames: list[list[Message]]) -> bytes:
    return b"".join(map(encode_frame, frames))


def plain(messages: list[Message]) -> list[Any]:
    """Messages in a form that compares by content: Raw does not."""
    return [(type(message), encode_frame([message])) for message in messages]


@settings(max_examples=50)
@given(st.lists(st.lists(MESSAGES, max_size=4), max_size=4), st.data())
def test_any_chunking_gives_the_same_messages(frames: list[list[Message]], data: st.DataObject) -> None:
    stream = wire(frames)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20).map(sorted))
    reader = FrameReader()
    received: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += reader.feed(stream[start:end])
    assert plain(received) == plain([message for frame in frames for message in frame])


@settings(max_examples=50)
@given(st.lists(MESSAGES, min_size=1, max_size=3))
def test_byte_by_byte(messages: list[Message]) -> None:
    reader, received = FrameReader(), []
    for byte in encode_frame(messages):
        received += reader.feed(bytes([byte]))
    assert plain(received) == plain(messages)


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_random_bytes(chunks: list[bytes]) -> None:
    reader = FrameReader()
    with contextlib.suppress(ProtocolError):
        for chunk in chunks:
            reader.feed(chunk)


@settings(max_examples=50)
@given(st.lists(MESSAGES, min_size=1, max_size=3), st.data())
def test_damaged_frames(messages: list[Message], data: st.DataObject) -> None:
    frame = bytearray(encode_frame(messages))
    for position in data.draw(st.lists(st.integers(0, len(frame) - 1), min_size=1, max_size=4)):
        frame[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        FrameReader().feed(bytes(frame))


@given(st.binary(max_size=80))
def test_random_payloads(payload: bytes) -> None:
    for decode in (payload_decoder(), payload_decoder(Batch)):
        with contextlib.suppress(*PAYLOAD_ERRORS):
            decode(payload)


@settings(max_examples=50)
@given(VALUES)
def test_payload_round_trip(value: Any) -> None:
    assert payload_decoder()(encode_payload(value)) == value


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_token_arrays(ids: list[int]) -> None:
    payload = encode_payload(Batch(token_array(ids), "n"))
    assert payload_decoder(Batch)(payload) == Batch(token_array(ids), "n")
    assert payload_decoder()(payload) == {"token_ids": ids, "name": "n"}
    # a peer without this extension may send plain numbers
    assert payload_decoder(Batch)(encode_payload({"token_ids": ids})).token_ids == token_array(ids)


def test_tokens_travel_as_bytes() -> None:
    assert len(encode_payload(token_array([2**31] * 1000))) < 4010


@pytest.mark.parametrize("ids", [[-1], [2**32], ["x"], "text", None, b"abc", {}])
def test_what_is_no_token_array(ids: Any) -> None:
    with pytest.raises(PAYLOAD_ERRORS):
        payload_decoder(Batch)(encode_payload({"token_ids": ids}))


@pytest.mark.parametrize("payload", [b"\xa2\xff\xff", b"\xc7\x03\x01abc", b"\xc7\x03\x09abc", b"\x91" * 100_000])
def test_payloads_that_msgpack_alone_would_let_through(payload: bytes) -> None:
    with pytest.raises(PAYLOAD_ERRORS):
        payload_decoder()(payload)


@pytest.mark.parametrize("value", [object(), {1, 2, object()}, lambda: None, 1 << 64, [token_array, 1]])
def test_values_that_cannot_travel(value: Any) -> None:
    with pytest.raises((TypeError, OverflowError)):
        encode_payload(value)


def test_payload_limit() -> None:
    with pytest.raises(RequestTooLargeError, match="frame"):
        encode_payload(bytes(1000), max_frame_bytes=1000)
    largest = encode_payload(bytes(DEFAULT_MAX_FRAME_BYTES - 600))
    reader = FrameReader()
    reader.feed(encode_frame([Hello(1)]))
    (item,) = reader.feed(encode_frame([Item(2**62, Raw(largest))]))
    assert isinstance(item, Item)


def test_frame_limits() -> None:
    reader = FrameReader(max_frame_bytes=100, first_frame_bytes=10)
    reader.feed(encode_frame([Hello(1)]))
    reader.feed(encode_frame([Item(1, Raw(bytes([0xC4, 80]) + bytes(80)))]))
    with pytest.raises(ProtocolError, match="200 bytes"):
        reader.feed((200).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="11 bytes"):
        FrameReader(max_frame_bytes=100, first_frame_bytes=10).feed((11).to_bytes(4, "big"))


def test_limit_is_checked_before_the_frame_arrives() -> None:
    reader = FrameReader()
    assert reader.feed(b"\xff\xff\xff") == []
    with pytest.raises(ProtocolError, match="over the limit"):
        reader.feed(b"\xff")


def test_only_frames_with_messages_raise_the_limit() -> None:
    """Or an unknown peer could make room for a large frame by sending an empty one."""
    reader = FrameReader(max_frame_bytes=100, first_frame_bytes=10, first_frames=2)
    for frame in ([], [Hello(1)], [], []):
        reader.feed(encode_frame(list[Message](frame)))
    with pytest.raises(ProtocolError, match="over the limit of 10"):
        reader.feed((50).to_bytes(4, "big"))
    reader = FrameReader(max_frame_bytes=100, first_frame_bytes=10, first_frames=2)
    reader.feed(encode_frame([Hello(1)]) + encode_frame([Proof(b"p")]) + (50).to_bytes(4, "big"))


HUGE = b"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd" + HUGE,
        b"\x91\x93\x02\x01\xdd" + HUGE,
        b"\x91\x93\x02\x01\xdf" + HUGE,
        b"\x91\x92\x09\xc6" + HUGE,
        b"\x91\x93\x00\x01\xdb" + HUGE,
        b"\x91" * 3000,
        b"\x91\x93\x02\x01" + b"\x91" * 3000,
    ],
    ids=["messages", "array", "map", "bytes", "text", "nested", "nested payload"],
)
def test_what_a_frame_says_of_its_content_takes_no_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            FrameReader().feed(len(body).to_bytes(4, "big") + body)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=50)
@given(st.lists(MESSAGES, min_size=1, max_size=3), st.data())
def test_a_part_of_a_frame_is_no_frame(messages: list[Message], data: st.DataObject) -> None:
    """Whether the rest never comes, or the length says that there is no rest."""
    frame = encode_frame(messages)
    cut = data.draw(st.integers(0, len(frame) - 1))
    assert FrameReader().feed(frame[:cut]) == []
    body = frame[4:cut]
    if body:
        with pytest.raises(ProtocolError):
            FrameReader().feed(len(body).to_bytes(4, "big") + body)


@settings(max_examples=50)
@given(st.lists(MESSAGES, min_size=1, max_size=3), st.data())
def test_wrong_bytes_in_any_portions(messages: list[Message], data: st.DataObject) -> None:
    """A damaged frame among good ones: what comes out are messages, or it is refused; nothing is kept but what came."""
    stream = bytearray(encode_frame(messages) * 2)
    for position in data.draw(st.lists(st.integers(0, len(stream) - 1), max_size=6)):
        stream[position] = data.draw(st.integers(0, 255))
    reader = FrameReader()
    with contextlib.suppress(ProtocolError):
        for start in range(0, len(stream), 7):
            assert all(isinstance(message, Message) for message in reader.feed(bytes(stream[start : start + 7])))
            assert len(reader._buffer) <= len(stream)
