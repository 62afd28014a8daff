"""The directory of a pool on the disk: who uses it, and what is in it."""

import contextlib
import os
from pathlib import Path

import msgspec

from dynamo.errors import ConfigError
from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.storage.slab import SlabShape
from dynamo.runtime.lock_file import lock_file
from dynamo.transfer.open_file import failure

_FORMAT = 1  # of slabs
_SUFFIX = ".slab"


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """pool.json: what the slabs were made for."""

    format: int
    namespace: str
    description: str
    payload_bytes: int
    slot_bytes: int
    slab_slots: int


class PoolDirectory:
    """`<directory>/<namespace>`, this process's alone from open() to close(). For threads.

    The methods raise DynamoErrors as transfers with files do.
    """

    def __init__(self, directory: Path, layout: PoolLayout, shape: SlabShape) -> None:
        self.path = directory / layout.namespace.hex()
        self._record = _Record(
            format=_FORMAT,
            namespace=layout.namespace.hex(),
            description=layout.description,
            payload_bytes=layout.payload_bytes,
            slot_bytes=layout.slot_bytes,
            slab_slots=shape.slots,
        )
        self._lock: int | None = None

    def open(self) -> None:
        """Makes it, if need be. Slabs of another form are removed: nobody could read them.

        Raises ConfigError when another process has it open.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._acquire()
            found = self._read()
            if found is None or _form(found) != _form(self._record):
                for slab in self.slabs():
                    self.path_of(slab).unlink()
            if found != self._record:
                self._write()
        except OSError as error:
            self.close()
            raise failure(self.path, error.errno) from error

    def slabs(self) -> list[int]:
        """The numbers of those that there are, in order."""
        try:
            stems = [path.stem for path in self.path.glob(f"*{_SUFFIX}")]
        except OSError as error:
            raise failure(self.path, error.errno) from error
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def path_of(self, slab: int) -> Path:
        return self.path / f"{slab:06}{_SUFFIX}"

    def remove(self, slab: int) -> None:
        """What it held is gone. Idempotent."""
        try:
            self.path_of(slab).unlink(missing_ok=True)
        except OSError as error:
            raise failure(self.path, error.errno) from error

    def close(self) -> None:
        """Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _acquire(self) -> None:
        self.close()
        try:
            self._lock = lock_file(self.path / "lock")
        except BlockingIOError:
            raise ConfigError(f"another block manager uses {self.path}") from None

    def _read(self) -> _Record | None:
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode((self.path / "pool.json").read_bytes(), type=_Record)
        return None

    def _write(self) -> None:
        """A power failure leaves the former one, or this, and nothing that cannot be read."""
        new = self.path / "pool.json.new"
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self._record)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path / "pool.json")
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _form(record: _Record) -> _Record:
    """Without the description, which may change."""
    return msgspec.structs.replace(record, description="")
