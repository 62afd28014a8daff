"""One process's part in transfers: its memory, its peers, and what it reads from and writes to them."""

import asyncio
import bisect
import logging
import secrets
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar, TypeVarTuple

import msgspec
import xxhash

from dynamo.errors import (
    ConfigError,
    ConnectionLostError,
    DynamoError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
)
from dynamo.runtime.channels import Channels
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.component import payload_handler
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.base import Listener
from dynamo.runtime.request_plane.call import PayloadHandler
from dynamo.runtime.request_plane.tcp import TcpPlane
from dynamo.transfer.blocks import Blocks
from dynamo.transfer.cma import REGIONS_MAX, CmaLink, CmaTarget
from dynamo.transfer.job import Control, Job, RegionKey
from dynamo.transfer.link import Link
from dynamo.transfer.memory import Memory, Region, view_of
from dynamo.transfer.metadata import AgentMetadata, RegionInfo
from dynamo.transfer.tcp import TcpLink, TcpTarget
from dynamo.transfer.transfer import Transfer
from dynamo.transfer.vector import Vector, locate

logger = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

BACKENDS = ("cma", "tcp")  # the best first
TIMEOUT_S = 30.0
TRANSFERS_MAX = 1024  # under way
NOTIFICATIONS_MAX = 1024  # that wait for their reader
_THREADS = 8


class Notification(msgspec.Struct, array_like=True, frozen=True):
    """A message of a peer's; its payload is the callers' own affair."""

    sender: str
    payload: bytes


@dataclass(slots=True, eq=False)
class _Peer:
    metadata: AgentMetadata
    regions: dict[int, RegionInfo]
    link: Link | None = None
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)


class Agent:
    """Use it as an async context manager, or start() and close() it."""

    def __init__(self, name: str, backends: Sequence[str] = BACKENDS, *, host: str = "127.0.0.1") -> None:
        """`name` is unique among those that know each other. `backends` are tried in this order.

        `host` is the address at which peers reach this one. Raises ConfigError for a backend that there is not.
        """
        for backend in backends:
            if backend not in BACKENDS:
                raise ConfigError(f"there is no transfer backend {backend!r}: choose from {', '.join(BACKENDS)}")
        self.name = name
        self._backends = tuple(backends)
        self._host = host
        self._regions: dict[int, Region] = {}
        self._by_address: tuple[Region, ...] = ()
        self._peers: dict[str, _Peer] = {}
        self._under_way = 0
        self._notifications: asyncio.Queue[Notification] = asyncio.Queue(NOTIFICATIONS_MAX)
        self._plane = TcpPlane(host)
        self._channels = Channels(self._plane)
        self._listener: Listener | None = None
        self._cma: CmaTarget | None = None
        self._tcp: TcpTarget | None = None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"transfer-{name}")
        self._stack = AsyncExitStack()
        self._handlers: dict[str, PayloadHandler] = {
            "notify": payload_handler(self._on_notify, Notification),
            "checksum": payload_handler(self._on_checksum, Blocks),
        }

    async def __aenter__(self) -> "Agent":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Becomes reachable. Raises ConfigError when its host is not this one's."""
        self._listener = await self._plane.listen(self._handler)
        self._stack.push_async_callback(self._listener.close)
        if "cma" in self._backends:
            self._cma = CmaTarget()
            self._stack.callback(self._cma.close)
        if "tcp" in self._backends:
            self._tcp = TcpTarget(self._located, self._host)
            self._stack.callback(self._tcp.close)

    async def close(self) -> None:
        """Transfers with peers end with ConnectionLostError, at both ends. Idempotent."""
        for name in tuple(self._peers):
            self.remove_peer(name)
        await self._stack.aclose()
        await self._channels.close()
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)

    # Memory

    def register(self, memory: Any) -> Region:
        """Peers who have metadata() from now on can read this, and write it unless it is read-only.

        `memory` is anything with the buffer protocol, or a torch tensor on the CPU; it is kept until deregister().
        Raises InvalidRequestError, UnsupportedFeatureError for what cannot be registered, OverloadedError for too much.
        """
        assert self._listener is not None, "an agent registers memory after start()"
        region_id = next((i for i in range(REGIONS_MAX) if i not in self._regions), None)
        if region_id is None:
            raise OverloadedError(f"there are {REGIONS_MAX} regions already")
        region = Region(self.name, region_id, secrets.randbits(63) | 1, Memory(memory))
        self._regions[region_id] = region
        self._set_key(region_id, region.key)
        return region

    def deregister(self, region: Region) -> None:
        """Nobody gets at it any more; what is under way may go on until its end. Idempotent."""
        if self._regions.get(region.id) is region:
            del self._regions[region.id]
            self._set_key(region.id, 0)

    # Peers

    def metadata(self) -> bytes:
        """What a peer needs to know, as bytes that may travel by any way that nobody else can read."""
        assert self._listener is not None, "an agent has metadata after start()"
        return AgentMetadata(
            name=self.name,
            address=self._listener.address,
            regions=[RegionInfo(r.id, r.key, r.address, r.size_bytes, r.writable) for r in self._regions.values()],
            cma=None if self._cma is None else self._cma.offer,
            tcp=None if self._tcp is None else self._tcp.offer,
        ).encode()

    def add_peer(self, metadata: bytes) -> str:
        """The peer's name. Metadata of a peer that is known already takes the place of the former.

        Raises InvalidRequestError for what is no metadata.
        """
        decoded = AgentMetadata.decode(metadata)
        known = self._peers.get(decoded.name)
        if known is not None and _same_process(known.metadata, decoded):
            known.metadata = decoded
            known.regions = {region.id: region for region in decoded.regions}
        else:
            self.remove_peer(decoded.name)
            self._peers[decoded.name] = _Peer(decoded, {region.id: region for region in decoded.regions})
        return decoded.name

    def remove_peer(self, name: str) -> None:
        """Transfers with it end with ConnectionLostError. Idempotent."""
        peer = self._peers.pop(name, None)
        if peer is not None and peer.link is not None:
            peer.link.close()

    # Transfers

    def read(self, local: Blocks, remote: Blocks, *, timeout_s: float = TIMEOUT_S, checksum: bool = False) -> Transfer:
        """Copies a peer's blocks into blocks of the same sizes here.

        Raises InvalidRequestError at once for blocks that are not registered, not writable, or do not match. With
        `checksum` both ends compare what they have then; a difference is an InternalError.
        """
        return self._begin(local, remote, timeout_s, write=False, checksum=checksum)

    def write(self, local: Blocks, remote: Blocks, *, timeout_s: float = TIMEOUT_S, checksum: bool = False) -> Transfer:
        """The other way round."""
        return self._begin(local, remote, timeout_s, write=True, checksum=checksum)

    # Notifications

    async def notify(self, peer: str, payload: bytes, *, timeout_s: float = TIMEOUT_S) -> None:
        """Returns when the peer has it. Raises ConnectionLostError, DeadlineExceededError, OverloadedError."""
        await self._call(self._peer(peer), "notify", Notification(self.name, payload), Context(), timeout_s)

    async def notifications(self) -> AsyncIterator[Notification]:
        """What peers notify this agent of, without end; for one reader."""
        while True:
            yield await self._notifications.get()

    # How

    def _begin(self, local: Blocks, remote: Blocks, timeout_s: float, *, write: bool, checksum: bool) -> Transfer:
        peer = self._peer(remote.agent)
        if local.agent != self.name:
            raise InvalidRequestError(f"the local blocks are {local.agent!r}'s, not {self.name!r}'s")
        if not local.matches(remote):
            raise InvalidRequestError("local and remote blocks differ in number or in size")
        if self._under_way >= TRANSFERS_MAX:
            raise OverloadedError(f"{self._under_way} transfers are under way")
        deadline_s = time.monotonic() + timeout_s
        here = locate(local, self._regions, write=not write)
        job = Job(
            write=write,
            local=here,
            remote=locate(remote, peer.regions, write=write),
            keys=tuple({span.region: peer.regions[span.region].key for span in remote.spans}.items()),
            control=Control(deadline_s=deadline_s),
            keep=[self._regions[span.region] for span in local.spans],
        )
        context = Context(deadline_s=deadline_s)
        transfer = Transfer(here.size_bytes, job.control, context)
        if peer.link is not None and not checksum and 0 < transfer.size_bytes <= peer.link.inline_bytes_max:
            self._copy_at_once(transfer, peer, peer.link, job)
        else:
            sums = (local, remote) if checksum else None
            transfer.run(self._copy(transfer, peer, job, context, sums), f"transfer-{self.name}-{remote.agent}")
        return transfer

    def _copy_at_once(self, transfer: Transfer, peer: _Peer, link: Link, job: Job) -> None:
        transfer.uses(link.name, [job])
        try:
            link.copy(job)
        except DynamoError as error:
            self._lost(peer, link, error)
            transfer.failed(error)

    async def _copy(
        self, transfer: Transfer, peer: _Peer, job: Job, context: Context, sums: tuple[Blocks, Blocks] | None
    ) -> None:
        self._under_way += 1
        try:
            link = await self._link(peer)
            job.control.check()
            jobs = _parts(job, link.lanes)
            transfer.uses(link.name, jobs)
            await self._copy_all(peer, link, jobs)
            if sums is not None:
                await self._compare(peer, *sums, context)
        finally:
            self._under_way -= 1

    async def _copy_all(self, peer: _Peer, link: Link, jobs: list[Job]) -> None:
        """Returns, or raises, when no job runs any more."""
        results = await asyncio.gather(*(self._in_thread(_copy_job, link, job) for job in jobs), return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                self._lost(peer, link, error)
                raise error

    async def _compare(self, peer: _Peer, local: Blocks, remote: Blocks, context: Context) -> None:
        ours = self._in_thread(_checksum, locate(local, self._regions, write=False))
        theirs = self._call(peer, "checksum", remote, context, context.remaining_s() or 0)
        if await ours != await theirs:
            raise InternalError(f"the bytes here are not those at {peer.metadata.name!r}")

    async def _link(self, peer: _Peer) -> Link:
        """The best that works. Raises ConnectionLostError where none does."""
        async with peer.connecting:
            if peer.link is None:
                peer.link = await self._connected(peer)
            return peer.link

    async def _connected(self, peer: _Peer) -> Link:
        failures: list[str] = []
        for backend in self._backends:
            make = _connector(backend, peer.metadata)
            if make is None:
                continue
            try:
                link = await self._in_thread(make)
            except ConnectionLostError as error:
                failures.append(str(error))
            else:
                level = logging.WARNING if failures else logging.DEBUG
                because = f" ({'; '.join(failures)})" if failures else ""
                logger.log(level, "transfers with %r go by %s%s", peer.metadata.name, backend, because)
                return link
        raise ConnectionLostError(
            f"no transfer backend reaches {peer.metadata.name!r}: {'; '.join(failures) or 'none that both have'}"
        )

    def _lost(self, peer: _Peer, link: Link, error: BaseException) -> None:
        """After a lost connection the way to the peer is looked for anew."""
        if isinstance(error, ConnectionLostError) and peer.link is link:
            peer.link = None
            link.close()

    async def _call(self, peer: _Peer, endpoint: str, message: Any, context: Context, timeout_s: float) -> Any:
        context.deadline_s = time.monotonic() + timeout_s
        async with asyncio.timeout(timeout_s):
            channel = await self._channels.get(peer.metadata.address)
            reply = channel.call(endpoint, encode_payload(message), context)
            try:
                return _decode(await anext(reply))
            finally:
                await reply.aclose()

    def _peer(self, name: str) -> _Peer:
        peer = self._peers.get(name)
        if peer is None:
            raise InvalidRequestError(f"{self.name!r} knows no peer {name!r}")
        return peer

    def _set_key(self, region_id: int, key: int) -> None:
        self._by_address = tuple(sorted(self._regions.values(), key=lambda region: region.address))
        if self._cma is not None:
            self._cma.set_key(region_id, key)

    def _in_thread(self, function: Callable[[*Ts], T], *arguments: *Ts) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    # What peers ask for

    def _handler(self, endpoint: str) -> PayloadHandler:
        handler = self._handlers.get(endpoint)
        if handler is None:
            raise NotFoundError(f"agents do not serve {endpoint}")
        return handler

    async def _on_notify(self, message: Notification) -> AsyncIterator[None]:
        try:
            self._notifications.put_nowait(message)
        except asyncio.QueueFull:
            raise OverloadedError(f"{NOTIFICATIONS_MAX} notifications wait for a reader") from None
        yield None

    async def _on_checksum(self, blocks: Blocks) -> AsyncIterator[int]:
        blocks.check()
        keep = [self._regions.get(span.region) for span in blocks.spans]
        yield await self._in_thread(_checksum, locate(blocks, self._regions, write=False))
        del keep

    def _located(self, keys: tuple[RegionKey, ...], cells: bytes, write: bool) -> tuple[Vector, object]:
        """A peer's request for memory of this agent, in a thread: checked, and with what keeps it there."""
        regions = {region.id: region for region in self._by_address}
        allowed = [regions.get(region_id) for region_id, _ in keys]
        for (region_id, key), region in zip(keys, allowed, strict=True):
            if region is None or region.key != key:
                raise InvalidRequestError(f"{self.name!r} has region {region_id} registered no more")
            if write and not region.writable:
                raise InvalidRequestError(f"region {region_id} of {self.name!r} is read-only")
        places = sorted((region for region in allowed if region is not None), key=lambda region: region.address)
        vector = _vector(cells)
        starts = [region.address for region in places]
        for address, length in vector:
            at = bisect.bisect_right(starts, address) - 1
            if at < 0 or address + length > places[at].address + places[at].size_bytes:
                raise InvalidRequestError(f"{self.name!r} has no such memory registered")
        return vector, places


def _copy_job(link: Link, job: Job) -> None:
    try:
        link.copy(job)
    except BaseException:
        job.control.cancelled.set()  # the other parts are of no use without it
        raise


def _parts(job: Job, count: int) -> list[Job]:
    """The same work in at most `count` jobs."""
    local = job.local.parts(count)
    sizes = [len(part) for part in local]
    remote = job.remote.split(sizes)
    return [
        Job(write=job.write, local=here, remote=there, keys=job.keys, control=job.control, keep=job.keep)
        for here, there in zip(local, remote, strict=True)
    ]


def _connector(backend: str, peer: AgentMetadata) -> Callable[[], Link] | None:
    """How to reach the peer by that backend, if it has it."""
    if backend == "cma" and (cma := peer.cma) is not None:
        return lambda: CmaLink(cma)
    if backend == "tcp" and (tcp := peer.tcp) is not None:
        return lambda: TcpLink(tcp)
    return None


def _same_process(one: AgentMetadata, other: AgentMetadata) -> bool:
    return (one.address, one.cma, one.tcp) == (other.address, other.cma, other.tcp)


def _vector(cells: bytes) -> Vector:
    if len(cells) % 16:
        raise InvalidRequestError("a vector has an address and a length for each piece")
    values = array("Q")
    values.frombytes(cells)
    return Vector(values)


def _checksum(vector: Vector) -> int:
    """xxh3_64 of the pieces, one after the other."""
    digest = xxhash.xxh3_64()
    for address, length in vector:
        digest.update(view_of(address, length))
    return digest.intdigest()


_decode = payload_decoder()
