"""Another agent, as far as it is known here, and the ways to it."""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from dynamo.errors import ConnectionLostError
from dynamo.transfer.backends import Backend
from dynamo.transfer.link import Link
from dynamo.transfer.metadata import AgentMetadata, RegionInfo
from dynamo.transfer.threads import Threads

logger = logging.getLogger(__name__)

_THREADS = 8


class Peer:
    """Owns its links: each is made when it is first needed, and again when it was lost."""

    def __init__(
        self,
        metadata: AgentMetadata,
        backends: Sequence[Backend],
    ) -> None:
        """`backends` are tried in this order."""
        self.metadata = metadata
        self.regions = {region.id: region for region in metadata.regions}
        self._backends = backends
        self.threads = Threads(_THREADS, f"transfer-{metadata.name}")  # its own: one that hangs holds up no other
        self._links: dict[str, Link] = {}
        self._failures: dict[str, str] = {}  # of backends that did not work, why
        self._connecting = asyncio.Lock()
        self._said: dict[str, str] = {}  # of backends that the log has named, why not a better one
        self._closed = False

    def update(self, metadata: AgentMetadata) -> bool:
        """Takes in newer metadata; False, and nothing has happened, if it is another process's."""
        if msgspec.structs.replace(metadata, regions=self.metadata.regions) != self.metadata:
            return False
        self.metadata = metadata
        self.regions = {region.id: region for region in metadata.regions}
        return True

    def ready_link(self, regions: Sequence[RegionInfo], *, gpus: bool) -> Link | None:
        """The best way to these, if it has been found already and need not wait.

        `gpus`: here or there it is the memory of one.
        """
        for backend in self._backends:
            if backend.name in self._failures or gpus > backend.gpus:
                continue
            link = self._links.get(backend.name)
            if link is None:
                return None
            if link.reaches(regions):
                return link if link.ready(regions) else None
        return None

    async def link(self, regions: Sequence[RegionInfo], *, gpus: bool) -> Link:
        """The best way to these that works. Raises ConnectionLostError where none does."""
        async with self._connecting:
            passed: list[str] = []  # that work, but not for these
            for backend in self._backends:
                if backend.name in self._failures or gpus > backend.gpus:
                    continue
                link = await self._connected(backend)
                if link is None:
                    continue
                if link.reaches(regions):
                    self._say(link, self._reasons(passed))
                    return link
                passed.append(f"{link.name} cannot get at memory of this kind")
            reasons = self._reasons(passed) or "none that both have"
            self._failures.clear()  # the next one tries them all again
        raise ConnectionLostError(f"no transfer backend reaches {self.metadata.name!r}: {reasons}")

    def lost(self, link: Link) -> None:
        """It did not work in the end: the way is looked for anew."""
        link.close()
        if self._links.get(link.name) is link:
            del self._links[link.name]
            self._failures.clear()

    async def close(self) -> None:
        """Transfers under way end with ConnectionLostError, at once; returns when none of them moves bytes any more."""
        self._closed = True
        for link in self._links.values():
            link.close()
        self._links.clear()
        await self.threads.close()

    async def _connected(self, backend: Backend) -> Link | None:
        link = self._links.get(backend.name)
        if link is None:
            metadata = self.metadata
            self._check_open()
            connecting = self.threads.run(backend.connect, metadata)
            try:
                link = await asyncio.shield(connecting)
            except asyncio.CancelledError:
                connecting.add_done_callback(_close)  # nobody waits for it any more
                raise
            except ConnectionLostError as error:
                self._failures[backend.name] = str(error)
                return None
            if link is None:
                self._failures[backend.name] = ""
                return None
            if self._closed:  # meanwhile
                link.close()
            self._check_open()
            self._links[backend.name] = link
        return link

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionLostError(f"the peer {self.metadata.name!r} was removed")

    def _reasons(self, passed: list[str]) -> str:
        return "; ".join(filter(None, (*self._failures.values(), *passed)))

    def _say(self, link: Link, reasons: str) -> None:
        if self._said.get(link.name) == reasons:
            return
        self._said[link.name] = reasons
        if reasons:
            logger.warning("transfers with %r go by %s: %s", self.metadata.name, link.name, reasons)
        else:
            logger.debug("transfers with %r go by %s", self.metadata.name, link.name)


def _close(connecting: "asyncio.Future[Link | None]") -> None:
    if connecting.cancelled() or connecting.exception() is not None:
        return
    link = connecting.result()
    if link is not None:
        link.close()
