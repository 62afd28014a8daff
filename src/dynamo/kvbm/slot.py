"""The image of a block, the same in host memory, on disk, in an object store and on the wire: a header and its bytes.

The header names the block and its namespace and has the checksum of the bytes behind it. So a block that was torn,
changed or exchanged is found out wherever it comes from. The checksum is made when a block first leaves memory.
"""

import struct
from dataclasses import dataclass

import xxhash

HEADER_BYTES = 128
ALIGN_BYTES = 4096  # of slots: what files opened with O_DIRECT ask for

_MAGIC = b"DYNKVB01"
_HEADER = struct.Struct("<8s16s32sQQ16s")  # magic, namespace, key, name, payload bytes, xxh3_128 of all else


def slot_bytes(payload_bytes: int) -> int:
    """The size of a slot for blocks of this size, a multiple of ALIGN_BYTES."""
    return -(-(HEADER_BYTES + payload_bytes) // ALIGN_BYTES) * ALIGN_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotHeader:
    """What a slot says of itself."""

    namespace: bytes
    key: bytes
    name: int
    payload_bytes: int
    checksum: bytes

    @classmethod
    def read(cls, slot: memoryview) -> "SlotHeader | None":
        """None for what is no header."""
        magic, namespace, key, name, payload_bytes, checksum = _HEADER.unpack_from(slot)
        if magic != _MAGIC:
            return None
        return cls(namespace=namespace, key=key, name=name, payload_bytes=payload_bytes, checksum=checksum)


def seal(slot: memoryview, *, namespace: bytes, key: bytes, name: int, payload_bytes: int) -> None:
    """Writes the header of a block whose bytes are in the slot. For threads: it reads all of them.

    A header that is right is left alone: it may be on its way to another tier.
    """
    checksum = _checksum(slot, namespace, key, name, payload_bytes)
    header = _HEADER.pack(_MAGIC, namespace, key, name, payload_bytes, checksum)
    if slot[: len(header)] != header:
        slot[: len(header)] = header


def is_intact(slot: memoryview, *, namespace: bytes, key: bytes, payload_bytes: int) -> bool:
    """Whether the slot holds this very block, every byte as it was sealed. For threads."""
    header = SlotHeader.read(slot)
    if header is None or (header.namespace, header.key, header.payload_bytes) != (namespace, key, payload_bytes):
        return False
    return header.checksum == _checksum(slot, namespace, key, header.name, payload_bytes)


def _checksum(slot: memoryview, namespace: bytes, key: bytes, name: int, payload_bytes: int) -> bytes:
    digest = xxhash.xxh3_128(slot[HEADER_BYTES : HEADER_BYTES + payload_bytes])
    digest.update(_HEADER.pack(_MAGIC, namespace, key, name, payload_bytes, b""))
    return digest.digest()
