"""The memory that an agent has registered."""

import bisect
import secrets
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dynamo.errors import InvalidRequestError, OverloadedError
from dynamo.transfer.job import RegionKey
from dynamo.transfer.memory import Memory, Region
from dynamo.transfer.metadata import REGIONS_MAX, RegionInfo
from dynamo.transfer.shared_memory import SharedMemory
from dynamo.transfer.vector import Vector


class Regions(Mapping[int, Region]):
    """By id. Ids are used again, keys are not."""

    def __init__(self, agent: str, on_change: Callable[[int, int], None]) -> None:
        """`on_change` is told the id of a region and its key, 0 when it is registered no more.

        It may refuse the first by an error.
        """
        self._agent = agent
        self._on_change = on_change
        self._regions: dict[int, Region] = {}

    def __getitem__(self, region_id: int) -> Region:
        return self._regions[region_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._regions)

    def __len__(self) -> int:
        return len(self._regions)

    def __contains__(self, region_id: object) -> bool:
        return region_id in self._regions  # the mixin's makes an exception of each that is not there

    def register(self, memory: Any) -> Region:
        """Raises what Memory() and `on_change` raise, OverloadedError when there are too many."""
        return self._add(Memory(memory))

    def allocate(self, size_bytes: int) -> Region:
        """Raises what SharedMemory() and `on_change` raise, OverloadedError when there are too many."""
        return self._add(SharedMemory(size_bytes))

    def deregister(self, region: Region) -> None:
        """Idempotent."""
        if self._regions.get(region.id) is region:
            del self._regions[region.id]
            self._on_change(region.id, 0)

    def clear(self) -> None:
        """For the end: peers need not be told."""
        self._regions.clear()

    def infos(self, regions: Iterable[Region] | None = None) -> list[RegionInfo]:
        """What peers are told of these, or of all."""
        told = self._regions.values() if regions is None else regions
        return [
            RegionInfo(r.id, r.key, r.address, r.size_bytes, r.writable, shared=r.fd is not None, gpu=r.gpu)
            for r in told
        ]

    def admit(self, keys: tuple[RegionKey, ...], cells: bytes, write: bool) -> tuple[Vector, object]:
        """A peer's request for memory, in any thread: its pieces, checked, and what keeps them where they are.

        Raises InvalidRequestError when a region is not registered any more, or a piece lies outside of all.
        """
        places = sorted((self._admitted(key, write) for key in keys), key=lambda region: region.address)
        starts = [region.address for region in places]
        vector = _vector(cells)
        for address, length in vector:
            at = bisect.bisect_right(starts, address) - 1
            if at < 0 or address + length > places[at].address + places[at].size_bytes:
                raise InvalidRequestError(f"{self._agent!r} has no such memory registered")
        return vector, places

    def _add(self, memory: Memory | SharedMemory) -> Region:
        region_id = next((i for i in range(REGIONS_MAX) if i not in self._regions), None)
        if region_id is None:
            raise OverloadedError(f"there are {REGIONS_MAX} regions already")
        region = Region(self._agent, region_id, secrets.randbits(63) | 1, memory)
        self._regions[region_id] = region
        try:
            self._on_change(region_id, region.key)
        except BaseException:
            self.deregister(region)
            raise
        return region

    def _admitted(self, region_key: RegionKey, write: bool) -> Region:
        region_id, key = region_key
        region = self._regions.get(region_id)
        if region is None or region.key != key:
            raise InvalidRequestError(f"{self._agent!r} has region {region_id} registered no more")
        if region.gpu is not None:
            raise InvalidRequestError(f"region {region_id} of {self._agent!r} is memory of a GPU")
        if write and not region.writable:
            raise InvalidRequestError(f"region {region_id} of {self._agent!r} is read-only")
        return region


def _vector(cells: bytes) -> Vector:
    if len(cells) % 16:
        raise InvalidRequestError("a vector has an address and a length for each piece")
    values = array("Q")
    values.frombytes(cells)
    return Vector(values)
