"""What travels from the side that offers memory to the one that reads or writes it, by any way of the caller's."""

import base64
import binascii
import zlib
from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any

import msgspec

_AGENT_BYTES_MAX = 16 << 20  # of an agent's metadata


class OperationKind(IntEnum):
    UNSPECIFIED = 0
    READ = 1
    WRITE = 2

    def __str__(self) -> str:
        return self.name if self else "<invalid>"


class SerializedDescriptor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where memory lies in its owner's process, in bytes."""

    device: Annotated[str, msgspec.Meta(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    ptr: Annotated[int, msgspec.Meta(gt=0)]
    size: Annotated[int, msgspec.Meta(ge=0)] = 0


class RdmaMetadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operation's memory. Who has it can reach that memory: it is for the peer alone.

    It is a pydantic model upstream; here it has the methods of one that programs call.
    """

    descriptors: list[SerializedDescriptor] = []
    nixl_metadata: str = ""  # see encode_agent()
    notification_key: str = ""
    operation_kind: Annotated[int, msgspec.Meta(ge=1, le=2)]

    @classmethod
    def model_validate(cls, obj: "RdmaMetadata | Mapping[str, Any]") -> "RdmaMetadata":
        """Raises ValueError."""
        try:
            return obj if isinstance(obj, cls) else msgspec.convert(obj, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"this is no RdmaMetadata: {error}") from error

    @classmethod
    def model_validate_json(cls, json_data: str | bytes) -> "RdmaMetadata":
        """Raises ValueError."""
        try:
            return msgspec.json.decode(json_data, type=cls)
        except msgspec.DecodeError as error:
            raise ValueError(f"this is no RdmaMetadata: {error}") from error

    def model_dump(self) -> dict[str, Any]:
        """What model_validate() takes."""
        dumped: dict[str, Any] = msgspec.to_builtins(self)
        return dumped

    def model_dump_json(self) -> str:
        return msgspec.json.encode(self).decode()


def encode_agent(metadata: bytes) -> str:
    """An agent's metadata as a text, as upstream writes it."""
    return "b64:" + base64.b64encode(zlib.compress(metadata)).decode()


def decode_agent(text: str) -> bytes:
    """Raises ValueError."""
    inflater = zlib.decompressobj()
    try:
        data = base64.b64decode(text.removeprefix("b64:"), validate=True)
        metadata = inflater.decompress(data, _AGENT_BYTES_MAX)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"nixl_metadata is damaged: {error}") from error
    if not inflater.eof:
        raise ValueError("nixl_metadata is cut off, or too large")
    return metadata
