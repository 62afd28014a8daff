"""Files and objects that an agent has registered: the other end of a transfer, as a peer is."""

import itertools
from collections.abc import Sequence

from dynamo.errors import InvalidRequestError, OverloadedError, UnsupportedFeatureError
from dynamo.transfer.blocks import Blocks
from dynamo.transfer.extent import Extent
from dynamo.transfer.link import Link
from dynamo.transfer.metadata import REGIONS_MAX, RegionInfo
from dynamo.transfer.threads import Threads

STORED_MAX = 4096  # that are registered at a time
_THREADS = 8


class StoredRegion(Extent):
    """A registered file, or registered objects."""

    __slots__ = ()


class Storage:
    """Each of its regions has a link of its own.

    Its threads are its own, too: a disk or store that hangs holds up no transfer between memories.
    """

    def __init__(self, agent: str) -> None:
        self.regions: dict[int, RegionInfo] = {}
        self.threads = Threads(_THREADS, f"transfer-{agent}-storage")
        self._agent = agent
        self._links: dict[int, Link] = {}
        self._ids = itertools.count(REGIONS_MAX)  # those of memory are below; none is used again

    def register(self, link: Link, size_bytes: int, *, writable: bool) -> StoredRegion:
        """Owns the link from now on. Raises OverloadedError, and closes it, when there are too many."""
        if len(self._links) >= STORED_MAX:
            link.close()
            raise OverloadedError(f"{STORED_MAX} files and objects are registered already")
        region = StoredRegion(self._agent, next(self._ids), size_bytes, writable)
        self.regions[region.id] = RegionInfo(region.id, 0, 0, size_bytes, writable)
        self._links[region.id] = link
        return region

    def deregister(self, region: StoredRegion) -> None:
        """Transfers under way end with ConnectionLostError. Idempotent."""
        link = self._links.pop(region.id, None)
        if link is not None:
            del self.regions[region.id]
            link.close()

    def has(self, blocks: Blocks) -> bool:
        """Whether these are blocks of files or objects, be they registered or not any more."""
        return blocks.agent == self._agent and any(span.region >= REGIONS_MAX for span in blocks.spans)

    def ready_link(self, regions: Sequence[RegionInfo], *, gpus: bool) -> Link:
        """The way to this region.

        Raises InvalidRequestError for several, UnsupportedFeatureError for the memory of GPUs.
        """
        if len(regions) != 1:
            raise InvalidRequestError("a transfer is with one file, or with objects that were registered together")
        if gpus:
            raise UnsupportedFeatureError("files and objects do not reach the memory of GPUs")
        return self._links[regions[0].id]

    async def link(self, regions: Sequence[RegionInfo], *, gpus: bool) -> Link:
        """As ready_link(). Raises InvalidRequestError when it is registered no more."""
        if regions[0].id not in self._links:
            raise InvalidRequestError(f"{self._agent!r} has region {regions[0].id} registered no more")
        return self.ready_link(regions, gpus=gpus)

    def lost(self, link: Link) -> None:
        """Nothing is looked for anew: the next transfer shows whether the file or store is back."""

    async def close(self) -> None:
        """Transfers under way end with ConnectionLostError. Idempotent."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        self.regions.clear()
        await self.threads.close()
