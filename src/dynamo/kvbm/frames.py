"""Messages of dynamo.protocols.kvbm to bytes and back; no I/O."""

import struct
from typing import Generic, TypeVar

import msgspec

from dynamo.errors import ProtocolError
from dynamo.protocols.kvbm import FRAME_BYTES_MAX, Reply, Request

T = TypeVar("T")

_LENGTH = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()


def frame(message: Request | Reply) -> bytes:
    """What travels. Raises ProtocolError for a message that is too large for the other side."""
    body = _encoder.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(f"a message of {len(body)} bytes is too large")
    return _LENGTH.pack(len(body)) + body


class FrameReader(Generic[T]):
    """Makes messages of one type out of what a stream brings, in pieces of any size."""

    def __init__(self, kind: type[T]) -> None:
        """`kind`: Request or Reply."""
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._data = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """The messages that are complete with this. Raises ProtocolError for what is none: read no further then."""
        self._data += data
        messages, start = [], 0
        while len(self._data) - start >= _LENGTH.size:
            (size_bytes,) = _LENGTH.unpack_from(self._data, start)
            if size_bytes > FRAME_BYTES_MAX:
                raise ProtocolError(f"a message of {size_bytes} bytes is too large")
            end = start + _LENGTH.size + size_bytes
            if len(self._data) < end:
                break
            messages.append(self._decode(bytes(self._data[start + _LENGTH.size : end])))
            start = end
        del self._data[:start]
        return messages

    def _decode(self, body: bytes) -> T:
        try:
            return self._decoder.decode(body)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise ProtocolError(f"this is no message of the block manager's: {error}") from error


def request_reader() -> FrameReader[Request]:
    """For the service."""
    return FrameReader(Request)  # type: ignore[arg-type] # a union is a type to msgspec


def reply_reader() -> FrameReader[Reply]:
    """For its clients."""
    return FrameReader(Reply)  # type: ignore[arg-type]
