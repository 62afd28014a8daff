"""A slab: a file with the images of many blocks, and before them a table that says which.

An entry of the table is written after its block and zeroed before another block takes its place. So whoever is killed
in between leaves no entry, not a wrong one. After a power failure an entry may be there without its block: that is seen
when the block is read, by its own header.
"""

import os
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

from dynamo.errors import ConnectionLostError
from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.slot import ALIGN_BYTES, HEADER_BYTES, SlotHeader
from dynamo.kvbm.storage.base import Stored
from dynamo.runtime.file_identity import is_file_of
from dynamo.transfer.open_file import failure

SLAB_BYTES = 8 << 30  # of the slots of a slab: few files, even of a large disk
SLAB_SLOTS_MAX = 1 << 16
STEP_BYTES = 64 << 20  # of disk space that is taken at a time

ENTRY_BYTES = HEADER_BYTES
_DIGEST = struct.Struct("<Q")
_COPIED_BYTES = ENTRY_BYTES - _DIGEST.size  # of a block's header
_NOTHING = bytes(ENTRY_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabShape:
    """Where things are in each slab of a pool."""

    slots: int
    slot_bytes: int

    @classmethod
    def of(cls, layout: PoolLayout) -> "SlabShape":
        return cls(slots=min(max(1, SLAB_BYTES // layout.slot_bytes), SLAB_SLOTS_MAX), slot_bytes=layout.slot_bytes)

    @property
    def table_bytes(self) -> int:
        """Before the slots, which are aligned for O_DIRECT."""
        return -(-self.slots * ENTRY_BYTES // ALIGN_BYTES) * ALIGN_BYTES

    def offset(self, index: int) -> int:
        """Of a slot, in bytes from the start of the file."""
        return self.table_bytes + index * self.slot_bytes


class Slab:
    """An open one. For threads; all methods raise DynamoErrors as transfers with files do."""

    def __init__(self, path: Path, shape: SlabShape, layout: PoolLayout, *, first: int, slots: int) -> None:
        """Makes the file if it is not there. It has places `first` to `first + slots - 1`, `shape.slots` at most."""
        self.path = path
        self.size_bytes = shape.offset(slots)
        self.first = first
        self._shape = shape
        self._layout = layout
        self._slots = slots
        self._taken: set[int] = set()  # steps of disk space
        self._lock = threading.Lock()
        self._closed = False
        with _errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with _errors(path):
                os.ftruncate(self._descriptor, self.size_bytes)
        except BaseException:
            os.close(self._descriptor)
            raise

    def offset(self, place: int) -> int:
        """Where its block is in the file."""
        return self._shape.offset(place - self.first)

    def entries(self) -> list[Stored]:
        """What the table tells. Entries that are none of this pool's, or of other places, are zeroed."""
        blocks: list[Stored] = []
        with self._open() as descriptor:
            table = os.pread(descriptor, self._shape.table_bytes, 0)
            for index in range(self._shape.slots):
                entry = table[index * ENTRY_BYTES : (index + 1) * ENTRY_BYTES]
                if entry == _NOTHING:
                    continue
                block = self._block(index, entry)
                if block is None:
                    os.pwrite(descriptor, _NOTHING, index * ENTRY_BYTES)
                else:
                    blocks.append(block)
        return blocks

    def prepare(self, places: Iterable[int]) -> None:
        """Takes disk space for these places, and zeroes their entries.

        Raises OverloadedError when the disk is full; then no entry has changed. ConnectionLostError when the file was
        removed, or another one put in its place: what is written into this one nobody would find again.
        """
        indices = [place - self.first for place in places]
        with self._open() as descriptor:
            if not is_file_of(self.path, descriptor):
                raise ConnectionLostError(f"{self.path} was removed")
            for index in indices:
                self._take(descriptor, index * ENTRY_BYTES, ENTRY_BYTES)
                self._take(descriptor, self._shape.offset(index), self._shape.slot_bytes)
            for index in indices:
                os.pwrite(descriptor, _NOTHING, index * ENTRY_BYTES)

    def enter(self, place: int, image: memoryview) -> None:
        """The block whose image this is lies at its place now."""
        index = place - self.first
        copied = bytes(image[:_COPIED_BYTES])
        with self._open() as descriptor:
            os.pwrite(descriptor, copied + _digest(copied, place), index * ENTRY_BYTES)

    def forget(self, block: Stored) -> None:
        """Zeroes its entry, if it is still its."""
        assert block.place is not None
        index = block.place - self.first
        with self._open() as descriptor:
            found = self._block(index, os.pread(descriptor, ENTRY_BYTES, index * ENTRY_BYTES))
            if found is not None and found.key == block.key:
                os.pwrite(descriptor, _NOTHING, index * ENTRY_BYTES)

    def clear(self) -> None:
        """Gives its disk space back."""
        with self._open() as descriptor:
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, self.size_bytes)
            self._taken.clear()

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)

    @contextmanager
    def _open(self) -> Iterator[int]:
        with self._lock:
            if self._closed:
                raise ConnectionLostError(f"{self.path} was closed")
            with _errors(self.path):
                yield self._descriptor

    def _take(self, descriptor: int, offset: int, size_bytes: int) -> None:
        for step in range(offset // STEP_BYTES, -(-(offset + size_bytes) // STEP_BYTES)):
            if step not in self._taken:
                start = step * STEP_BYTES
                os.posix_fallocate(descriptor, start, min(STEP_BYTES, self.size_bytes - start))
                self._taken.add(step)

    def _block(self, index: int, entry: bytes) -> Stored | None:
        if index >= self._slots or len(entry) != ENTRY_BYTES:
            return None
        place = self.first + index
        if entry[_COPIED_BYTES:] != _digest(entry[:_COPIED_BYTES], place):
            return None
        header = SlotHeader.read(memoryview(entry))
        if header is None or (header.namespace, header.payload_bytes) != (
            self._layout.namespace,
            self._layout.payload_bytes,
        ):
            return None
        return Stored(key=header.key, name=header.name, place=place)


def _digest(copied: bytes, place: int) -> bytes:
    return _DIGEST.pack(xxhash.xxh3_64_intdigest(copied, seed=place))


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failure(path, error.errno) from error
