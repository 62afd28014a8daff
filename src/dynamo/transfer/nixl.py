"""Reads and writes by NIXL: RDMA where there is a network card for it, and memory of GPUs.

Each side has a ledger of its regions, which NIXL reads like any other memory: before and after each transfer it tells
whether this is the peer still, and the regions are registered. NIXL itself does not
tell: within a host, memory that was deregistered can still be read.
"""

import ctypes
import itertools
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from dynamo.errors import ConnectionLostError, UnsupportedFeatureError
from dynamo.transfer.job import Job, RegionKey
from dynamo.transfer.ledger import COOKIE_BYTES, KEYS_OFFSET, LEDGER_BYTES, Ledger
from dynamo.transfer.memory import Region
from dynamo.transfer.metadata import REGIONS_MAX, AgentMetadata, NixlOffer, RegionInfo
from dynamo.transfer.nixl_library import Chunk, Descriptor, NixlLibrary, has_gpus, is_installed
from dynamo.transfer.vector import Vector

logger = logging.getLogger(__name__)

_CHUNK_BYTES_MAX = 8 << 20  # which has to end before its transfer can
_RDMA = Path("/sys/class/infiniband")


def is_of_use() -> bool:
    """Whether this host has what NIXL alone makes use of, RDMA or GPUs, and NIXL itself.

    Without these it is slower than the other backends: UCX over TCP, or over the kernel's copies.
    """
    return (any(_RDMA.glob("*")) or has_gpus()) and is_installed()


class NixlEnds:
    """Makes both ends, which share NIXL's agent."""

    def __init__(self) -> None:
        self._library: NixlLibrary | None = None

    def open(self, regions: Mapping[int, Region]) -> "NixlTarget":
        """Raises ConfigError where NIXL is not installed, or does not work."""
        self._library = NixlLibrary()
        return NixlTarget(self._library, regions)

    def connect(self, offer: NixlOffer) -> "NixlLink":
        """After open(). Raises what NixlLink() raises."""
        assert self._library is not None
        return NixlLink(self._library, offer)


class NixlTarget:
    """As Target: its memory is registered with NIXL as well."""

    def __init__(self, library: NixlLibrary, regions: Mapping[int, Region]) -> None:
        """Owns `library` from now on."""
        self._library = library
        self._regions = regions
        self._registered: dict[int, tuple[Any, bytes]] = {}  # NIXL's handle and what peers have to know, by region id
        self._memory = ctypes.create_string_buffer(LEDGER_BYTES)
        address = ctypes.addressof(self._memory)
        self._ledger = Ledger(address)
        cookie = secrets.token_bytes(COOKIE_BYTES)
        self._ledger.open(cookie)
        connection = library.describe(library.register(address, LEDGER_BYTES, None), connection=True)
        self._offer = NixlOffer(name=library.name, connection=connection, ledger_address=address, cookie=cookie)

    def offer(self, metadata: AgentMetadata) -> None:
        if self._library.closing:
            return
        metadata.nixl = self._offer
        metadata.regions = [
            msgspec.structs.replace(info, nixl=self._registered[info.id][1]) if info.id in self._registered else info
            for info in metadata.regions
        ]

    def set_key(self, region_id: int, key: int) -> None:
        """Raises UnsupportedFeatureError for memory of a GPU that NIXL cannot register."""
        self._ledger.set_key(region_id, key)
        if key:
            self._register(self._regions[region_id])
        elif region_id in self._registered:
            handle, _ = self._registered.pop(region_id)
            with suppress(ConnectionLostError):  # then all of NIXL was closed
                self._library.deregister(handle)

    def close(self) -> None:
        """Blocks for as long as a chunk may take."""
        self._ledger.close()
        self._library.close()

    def _register(self, region: Region) -> None:
        if region.size_bytes == 0:
            return
        try:
            handle = self._library.register(region.address, region.size_bytes, region.gpu)
            self._registered[region.id] = handle, self._library.describe(handle)
        except ConnectionLostError as error:
            if region.gpu is not None:
                raise UnsupportedFeatureError(f"memory of GPU {region.gpu} cannot be registered: {error}") from error
            logger.warning("region %d is not within the reach of NIXL: %s", region.id, error)


class NixlLink:
    """As Link. One chunk is under way at a time: jobs take turns."""

    name = "nixl"
    lanes = 1
    inline_bytes_max = 0

    def __init__(self, library: NixlLibrary, offer: NixlOffer) -> None:
        """Raises ConnectionLostError when the peer is not there."""
        self._library = library
        self._offer = offer
        self._closed = False
        self._known: dict[int, RegionInfo] = {}  # by key; for who has the turn
        self._way = library.way(offer.name)
        self._memory = ctypes.create_string_buffer(LEDGER_BYTES)  # what was last read of the peer's ledger
        self._ledger = Ledger(ctypes.addressof(self._memory))
        self._handle = library.register(ctypes.addressof(self._memory), LEDGER_BYTES, None)
        with self._way.turn(lambda: None):
            self._way.user = self
            try:
                self._connect()
                self._check((), lambda: None)
            except BaseException:
                self._leave()
                raise

    def reaches(self, regions: Iterable[RegionInfo]) -> bool:
        return all(region.nixl or not region.size_bytes for region in regions)

    def ready(self, regions: Iterable[RegionInfo]) -> bool:
        return True

    def copy(self, job: Job) -> None:
        check = job.control.check
        with self._turn(check):
            self._check(job.keys, check)
        while len(job.local):
            pieces, size_bytes = job.local.take(_CHUNK_BYTES_MAX)
            chunk = Chunk(
                write=job.write,
                local=_descriptors(job.local, pieces, job.local_gpu),
                remote=_descriptors(job.remote, pieces, job.remote_gpu),
                local_on_gpu=job.local_gpu is not None,
                remote_on_gpu=job.remote_gpu is not None,
            )
            with self._turn(check):
                self._learn(job.regions)
                self._library.move(self._offer.name, chunk, check)
            job.done_bytes += size_bytes
            job.local.skip(pieces)
            job.remote.skip(pieces)
        with self._turn(check):
            self._check(job.keys, check)  # or it was somebody else's memory by the end

    def close(self) -> None:
        self._closed = True
        with self._way.turn_if_free() as free:
            if free:  # or who has the turn does the rest
                self._leave()

    @contextmanager
    def _turn(self, check: Callable[[], None]) -> Iterator[None]:
        with self._way.turn(check):
            try:
                check()
                if self._closed:
                    raise ConnectionLostError("the link was closed")
                yield
            finally:
                if self._closed:
                    self._leave()

    def _connect(self) -> None:
        """Anew, and nothing is known of the peer's regions."""
        self._library.forget(self._offer.name)
        self._library.know(self._offer.connection)
        self._known.clear()

    def _leave(self) -> None:
        """For who has the turn. Idempotent."""
        if self._way.user is not self:
            return
        self._way.user = None
        self._library.forget(self._offer.name)
        with suppress(ConnectionLostError):  # then all of NIXL was closed
            self._library.deregister(self._handle)

    def _learn(self, regions: Iterable[RegionInfo]) -> None:
        """NIXL cannot forget a single region, and might take an old one for a new one at the same place.

        Then it forgets all: jobs of other regions have it learn those again in their next turn.
        """
        new = [region for region in regions if region.nixl and region.key not in self._known]
        if len(self._known) + len(new) > REGIONS_MAX or any(map(self._replaces, new)):
            self._connect()
            new = [region for region in regions if region.nixl]
        for region in new:
            self._library.know(region.nixl)
            self._known[region.key] = region

    def _replaces(self, new: RegionInfo) -> bool:
        return any(
            old.gpu == new.gpu
            and old.address < new.address + new.size_bytes
            and new.address < old.address + old.size_bytes
            for old in self._known.values()
        )

    def _check(self, keys: tuple[RegionKey, ...], check: Callable[[], None]) -> None:
        """Raises ConnectionLostError if this is not the peer any more, InvalidRequestError if not its regions."""
        here, there = ctypes.addressof(self._memory), self._offer.ledger_address
        places = [(0, COOKIE_BYTES), *((KEYS_OFFSET + 8 * region_id, 8) for region_id, _ in keys)]
        chunk = Chunk(
            write=False,
            local=[(here + offset, size_bytes, 0) for offset, size_bytes in places],
            remote=[(there + offset, size_bytes, 0) for offset, size_bytes in places],
        )
        self._library.move(self._offer.name, chunk, check)
        self._ledger.check(self._offer.cookie, keys)


def _descriptors(vector: Vector, pieces: int, gpu: int | None) -> list[Descriptor]:
    """The first pieces as NIXL takes them."""
    return [(address, size_bytes, gpu or 0) for address, size_bytes in itertools.islice(vector, pieces)]
