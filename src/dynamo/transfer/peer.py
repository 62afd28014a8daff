"""Another agent, as far as it is known here, and the ways to it."""

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec

from dynamo.errors import ConnectionLostError
from dynamo.transfer.backends import Backend
from dynamo.transfer.link import Link
from dynamo.transfer.metadata import AgentMetadata, RegionInfo

logger = logging.getLogger(__name__)

Connect = Callable[[], Link | None]


class Peer:
    """Owns its links: each is made when it is first needed, and again when it was lost."""

    def __init__(
        self,
        metadata: AgentMetadata,
        backends: Sequence[Backend],
        in_thread: Callable[[Connect], "asyncio.Future[Link | None]"],
    ) -> None:
        """`backends` are tried in this order; `in_thread` runs what blocks."""
        self.metadata = metadata
        self.regions = {region.id: region for region in metadata.regions}
        self._backends = backends
        self._in_thread = in_thread
        self._links: dict[str, Link] = {}
        self._failures: dict[str, str] = {}  # of backends that did not work, why
        self._connecting = asyncio.Lock()
        self._chosen = ""  # backend that the log has named

    def update(self, metadata: AgentMetadata) -> bool:
        """Takes in newer metadata; False, and nothing has happened, if it is another process's."""
        if msgspec.structs.replace(metadata, regions=self.metadata.regions) != self.metadata:
            return False
        self.metadata = metadata
        self.regions = {region.id: region for region in metadata.regions}
        return True

    def ready_link(self, regions: Sequence[RegionInfo], *, gpus: bool) -> Link | None:
        """The best way to these, if it has been found already; `gpus`: here or there it is the memory of one."""
        for backend in self._backends:
            if backend.name in self._failures or gpus > backend.gpus:
                continue
            link = self._links.get(backend.name)
            if link is None or link.reaches(regions):
                return link
        return None

    async def link(self, regions: Sequence[RegionInfo], *, gpus: bool) -> Link:
        """The best way to these that works. Raises ConnectionLostError where none does."""
        async with self._connecting:
            for backend in self._backends:
                if backend.name in self._failures or gpus > backend.gpus:
                    continue
                link = await self._connected(backend)
                if link is not None and link.reaches(regions):
                    self._say(link)
                    return link
            reasons = "; ".join(filter(None, self._failures.values())) or "none that both have"
            self._failures.clear()  # the next one tries them all again
        raise ConnectionLostError(f"no transfer backend reaches {self.metadata.name!r}: {reasons}")

    def lost(self, link: Link) -> None:
        """It did not work in the end: the way is looked for anew."""
        link.close()
        if self._links.get(link.name) is link:
            del self._links[link.name]
            self._failures.clear()

    def close(self) -> None:
        """Transfers under way end with ConnectionLostError."""
        for link in self._links.values():
            link.close()
        self._links.clear()

    async def _connected(self, backend: Backend) -> Link | None:
        link = self._links.get(backend.name)
        if link is None:
            metadata = self.metadata
            try:
                link = await self._in_thread(lambda: backend.connect(metadata))
            except ConnectionLostError as error:
                self._failures[backend.name] = str(error)
                return None
            if link is None:
                self._failures[backend.name] = ""
                return None
            self._links[backend.name] = link
        return link

    def _say(self, link: Link) -> None:
        if link.name == self._chosen:
            return
        self._chosen = link.name
        reasons = "; ".join(filter(None, self._failures.values()))
        if reasons:
            logger.warning("transfers with %r go by %s: %s", self.metadata.name, link.name, reasons)
        else:
            logger.debug("transfers with %r go by %s", self.metadata.name, link.name)
