"""The checksum of blocks: xxh3_64 of their bytes, one block after the other. For threads."""

from array import array

import xxhash

from dynamo.transfer.job import Control, Job
from dynamo.transfer.link import Link
from dynamo.transfer.memory import Memory, view_of
from dynamo.transfer.vector import Vector

_BATCH_BYTES = 16 << 20


def checksum_of_memory(vector: Vector, keep: object, control: Control) -> int:
    """Of pieces of this process's memory, which `keep` holds. Raises what `control.check()` raises."""
    digest = xxhash.xxh3_64()
    for address, length in vector:
        control.check()
        digest.update(view_of(address, length))
    return digest.intdigest()


def checksum_through(link: Link, vector: Vector, control: Control) -> int:
    """Of what is read through the link, a batch at a time. Raises what Link.copy() raises."""
    digest = xxhash.xxh3_64()
    while len(vector):
        pieces, size_bytes = vector.take(_BATCH_BYTES)
        batch, vector = vector.split((pieces, len(vector) - pieces))
        buffer = bytearray(size_bytes)
        link.copy(Job(write=False, local=_cut_like(batch, Memory(buffer)), remote=batch, regions=(), control=control))
        digest.update(buffer)
    return digest.intdigest()


def _cut_like(vector: Vector, memory: Memory) -> Vector:
    """The memory in pieces of these sizes."""
    cells, address = array("Q"), memory.address
    for _, length in vector:
        cells.extend((address, length))
        address += length
    return Vector(cells)
