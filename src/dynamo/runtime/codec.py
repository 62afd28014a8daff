"""Frames on the request plane: messages to bytes and back, no I/O.

A frame is a length (4 bytes, big-endian, of what follows) and a msgpack array of messages; each message is an array
that starts with its tag. Everything that leaves in one turn of the event loop shares a frame. Payloads are msgpack
values that this layer passes on unread; msgpack extension 1 is an array of little-endian u32 (token ids, mostly).
"""

from array import array
from collections.abc import Callable
from typing import Any

import msgspec

from dynamo.errors import ErrorInfo, ProtocolError, RequestTooLargeError
from dynamo.tokens import TokenArray, token_array

PROTOCOL_VERSION = 2
DEFAULT_MAX_FRAME_BYTES = 64 << 20
HANDSHAKE_FRAME_BYTES = 4 << 10
PAYLOAD_ERRORS = (ValueError, RecursionError)  # what decoding a payload may raise; msgspec's errors are ValueErrors
_LENGTH_BYTES = 4
ITEM_OVERHEAD_BYTES = 64  # what an item costs its reader beside its payload, so that empty ones are not free
FRAME_OVERHEAD_BYTES = 512  # what a message may need around its payload
_U32_ARRAY = 1


class Hello(msgspec.Struct, array_like=True, tag=0, frozen=True):
    """The first message in both directions; `secret` is what discovery says about the instance.

    Where the deployment has a secret, a `nonce` stands in its place: see request_plane/handshake.py.
    """

    version: int
    secret: str = ""
    nonce: bytes = b""


class Call(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """Starts a stream: the request and what its Context carries over."""

    stream_id: int
    endpoint: str
    request_id: str
    window_bytes: int  # credit for the replies
    timeout_s: float | None
    traceparent: str | None
    metadata: dict[str, str]
    payload: msgspec.Raw


class Item(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """One item of the reply."""

    stream_id: int
    payload: msgspec.Raw


class End(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """The reply is complete, or failed."""

    stream_id: int
    error: ErrorInfo | None = None


class Stop(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """The caller wants an early end (or, with `kill`, no end at all)."""

    stream_id: int
    kill: bool


class Credit(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """The caller has consumed that many bytes of payload."""

    stream_id: int
    size_bytes: int


class GoAway(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """No new calls on this connection; with `error` the ones under way are over too."""

    error: ErrorInfo | None = None


class Ping(msgspec.Struct, array_like=True, tag=7, frozen=True):
    """The caller asks for a sign of life, and says when it may be taken for dead itself if no other message comes."""

    silence_max_s: float


class Pong(msgspec.Struct, array_like=True, tag=8, frozen=True):
    """The sign of life."""


class Proof(msgspec.Struct, array_like=True, tag=9, frozen=True):
    """Whoever sends it knows the deployment's secret; the second message in both directions where there is one."""

    proof: bytes


Message = Hello | Call | Item | End | Stop | Credit | GoAway | Ping | Pong | Proof


def encode_frame(messages: list[Message]) -> bytes:
    """One frame with all `messages`."""
    body = _encoder.encode(messages)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def encode_payload(value: Any, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> bytes:
    """`value` as msgpack; TypeError when it holds something that msgpack lacks, RequestTooLargeError over the limit."""
    payload = _encoder.encode(value)
    if len(payload) > max_frame_bytes - FRAME_OVERHEAD_BYTES:
        raise RequestTooLargeError(f"an item of {len(payload)} bytes does not fit into a frame of {max_frame_bytes}")
    return payload


def payload_decoder(value_type: Any = Any) -> Callable[[bytes | msgspec.Raw], Any]:
    """A function from payload to `value_type`; it raises one of PAYLOAD_ERRORS for a wrong shape.

    Without a type, arrays of u32 arrive as plain lists.
    """
    if value_type is Any:
        return msgspec.msgpack.Decoder(ext_hook=_list_from_extension).decode
    return msgspec.msgpack.Decoder(value_type, dec_hook=_decode_array).decode


class FrameReader:
    """Cuts a byte stream into messages.

    The first `first_frames` that are not empty may be no larger than `first_frame_bytes`: until then the peer has not
    shown who it is.
    """

    def __init__(
        self,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        first_frame_bytes: int = HANDSHAKE_FRAME_BYTES,
        first_frames: int = 1,
    ) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._limit_bytes = first_frame_bytes
        self._first_frames = first_frames
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes, in order.

        Raises ProtocolError for anything that is not our protocol; the reader is unusable then.
        """
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._end_of_frame(self._buffer, 0):
                return []
            data = bytes(self._buffer)  # payloads keep views into it, so it must not change any more
            self._buffer.clear()
        messages: list[Message] = []
        view = memoryview(data)
        start = 0
        while (end := self._end_of_frame(data, start)) <= len(data):
            decoded = self._decode(view[start + _LENGTH_BYTES : end])
            if self._first_frames and decoded:
                self._count_first_frame()
            messages += decoded
            start = end
        if start < len(data):
            self._buffer += view[start:]
        return messages

    def _end_of_frame(self, data: bytes | bytearray, start: int) -> int:
        """Where the frame at `start` ends, or one byte past what is there when its length is not complete."""
        if len(data) - start < _LENGTH_BYTES:
            return len(data) + 1
        size = int.from_bytes(data[start : start + _LENGTH_BYTES], "big")
        if size > self._limit_bytes:
            raise ProtocolError(f"a frame of {size} bytes is over the limit of {self._limit_bytes}")
        return start + _LENGTH_BYTES + size

    def _count_first_frame(self) -> None:
        self._first_frames -= 1
        if self._first_frames == 0:
            self._limit_bytes = self._max_frame_bytes

    def _decode(self, body: memoryview) -> list[Message]:
        try:
            return _decoder.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ProtocolError(f"not a frame of this protocol: {error}") from error


def _encode_unknown(value: Any) -> Any:
    if isinstance(value, array) and value.typecode == "I":
        return msgspec.msgpack.Ext(_U32_ARRAY, value.tobytes())
    raise TypeError(f"{type(value).__name__} objects cannot travel between processes")


def _array_from_bytes(data: bytes) -> TokenArray:
    values = token_array()
    values.frombytes(data)
    return values


def _list_from_extension(code: int, data: memoryview) -> Any:
    if code != _U32_ARRAY:
        raise ValueError(f"unknown msgpack extension {code}")
    return _array_from_bytes(bytes(data)).tolist()


def _decode_array(wanted: Any, value: Any) -> Any:
    if wanted is not array:
        raise NotImplementedError(f"cannot decode {wanted}")
    if isinstance(value, msgspec.msgpack.Ext) and value.code == _U32_ARRAY:
        return _array_from_bytes(bytes(value.data))
    if not isinstance(value, list):
        raise ValueError("expected token ids")
    try:
        return token_array(value)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"not a token id: {error}") from error


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_unknown)
_decoder = msgspec.msgpack.Decoder(list[Message])
