"""One process's part in transfers: its memory, its peers, and what it reads from and writes to them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dynamo.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    DynamoError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    RequestCancelledError,
    UnsupportedFeatureError,
)
from dynamo.runtime.background import in_background
from dynamo.runtime.channels import Channels
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.component import payload_handler
from dynamo.runtime.context import Context
from dynamo.runtime.credentials import NO_CREDENTIALS, Credentials
from dynamo.runtime.request_plane.base import Listener
from dynamo.runtime.request_plane.call import PayloadHandler
from dynamo.runtime.request_plane.tcp import TcpPlane
from dynamo.transfer.backends import backend, backends_of_use
from dynamo.transfer.blocks import Blocks
from dynamo.transfer.checksum import checksum_of_memory, checksum_through
from dynamo.transfer.file import FileLink
from dynamo.transfer.job import Control, Job, RegionKey
from dynamo.transfer.link import Link, Target
from dynamo.transfer.memory import Region
from dynamo.transfer.metadata import AgentMetadata, RegionInfo
from dynamo.transfer.objects import ObjectLink, ObjectStore
from dynamo.transfer.open_file import OpenFile
from dynamo.transfer.peer import Peer
from dynamo.transfer.regions import Regions
from dynamo.transfer.storage import Storage, StoredRegion
from dynamo.transfer.threads import Threads
from dynamo.transfer.transfer import Transfer
from dynamo.transfer.vector import IOV_MAX, Vector, locate

T = TypeVar("T")

TIMEOUT_S = 30.0
TRANSFERS_MAX = 1024  # under way
NOTIFICATIONS_MAX = 1024  # that wait for their reader
_THREADS = 8


class Notification(msgspec.Struct, array_like=True, frozen=True):
    """A message of a peer's; its payload is the callers' own affair."""

    sender: str
    payload: bytes


Answerer = Callable[[Notification], Awaitable[bytes]]


class ChecksumRequest(msgspec.Struct, array_like=True, frozen=True):
    """A peer asks for the checksum of this agent's memory."""

    keys: tuple[RegionKey, ...]
    vector: bytes


class Agent:
    """Use it as an async context manager, or start() and close() it."""

    def __init__(
        self,
        name: str,
        backends: Sequence[str] | None = None,
        *,
        host: str = "127.0.0.1",
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        """`name` is unique among those that know each other. `backends` are tried in this order; None: what is of use.

        `host` is the address at which peers reach this one; `credentials` are what they and this one show each other.
        Raises ConfigError for a backend that there is not.
        """
        self.name = name
        self._backends = (
            backends_of_use(credentials) if backends is None else [backend(name, credentials) for name in backends]
        )
        self._host = host
        self._regions = Regions(name, self._set_key)
        self._targets: list[Target] = []
        self._peers: dict[str, Peer] = {}
        self._leaving: set[asyncio.Task[None]] = set()  # peers that were removed
        self._under_way = 0
        self._notifications: asyncio.Queue[Notification] = asyncio.Queue(NOTIFICATIONS_MAX)
        self._answerer: Answerer | None = None
        self._plane = TcpPlane(host, credentials=credentials)
        self._channels = Channels(self._plane)
        self._listener: Listener | None = None
        self._threads = Threads(_THREADS, f"transfer-{name}")
        self._storage = Storage(name)
        self._stack = AsyncExitStack()
        self._handlers: dict[str, PayloadHandler] = {
            "notify": payload_handler(self._on_notify, Notification),
            "ask": payload_handler(self._on_ask, Notification),
            "checksum": payload_handler(self._on_checksum, ChecksumRequest),
        }

    async def __aenter__(self) -> "Agent":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Becomes reachable. Raises ConfigError when its host is not this one's, or a backend lacks what it needs."""
        async with AsyncExitStack() as stack:
            listener = await self._plane.listen(self._handler)
            stack.push_async_callback(listener.close)
            for each in self._backends:
                target = await self._threads.run(each.open, self._regions, self._host)
                stack.callback(target.close)
                self._targets.append(target)
            self._listener = listener
            self._stack = stack.pop_all()

    async def close(self) -> None:
        """Transfers end with ConnectionLostError, at both ends; no memory is registered any more. Idempotent."""
        for name in tuple(self._peers):
            self.remove_peer(name)
        if self._leaving:
            await asyncio.wait(self._leaving)
        await self._stack.aclose()
        await self._channels.close()
        await self._storage.close()
        await self._threads.close()
        self._regions.clear()

    # Memory

    def register(self, memory: Any) -> Region:
        """Peers who have metadata() from now on can read this, and write it unless it is read-only.

        `memory` is anything with the buffer protocol, or a torch tensor, on CUDA as well where NIXL is installed; it is
        kept until deregister().
        Raises InvalidRequestError, UnsupportedFeatureError for what cannot be registered, OverloadedError for too much.
        """
        assert self._listener is not None, "an agent registers memory after start()"
        return self._regions.register(memory)

    def allocate(self, size_bytes: int) -> Region:
        """New memory, zeroed and registered. It can go by shared memory, where other processes' own is out of reach.

        It is given back when neither the region nor a view of it is left. Raises InvalidRequestError for a size that is
        none, OverloadedError for too much.
        """
        assert self._listener is not None, "an agent allocates memory after start()"
        return self._regions.allocate(size_bytes)

    def deregister(self, region: Region | StoredRegion) -> None:
        """Nobody gets at it any more. Idempotent.

        What is under way may go on until its end; with a file or objects, it ends with ConnectionLostError. A peer that
        goes by cma may be in the midst of a write: have it say that it has done before the memory is used otherwise.
        """
        if isinstance(region, StoredRegion):
            self._storage.deregister(region)
        else:
            self._regions.deregister(region)

    # Storage

    def register_file(
        self,
        path: str | Path,
        size_bytes: int | None = None,
        *,
        writable: bool = False,
        direct: bool = True,
        sync: bool = False,
    ) -> StoredRegion:
        """The first `size_bytes` of a file, all by default, as the remote end of this agent's reads and writes.

        A writable file is made, or made larger, if it has to be. With `direct` blocks whose addresses, offsets and
        sizes are multiples of 4096 go past the page cache, if the filesystem has it. With `sync` a write's end means
        that it is on the disk. The file is open until deregister().
        Raises NotFoundError, InvalidRequestError for what is no file, too small or not allowed, OverloadedError for
        too many or too large ones, ConnectionLostError for a disk that fails. In transfers, too.
        """
        assert self._listener is not None, "an agent registers files after start()"
        file = OpenFile(Path(path), size_bytes, writable=writable, direct=direct)
        return self._storage.register(FileLink(file, sync=sync), file.size_bytes, writable=writable)

    def register_objects(
        self, store: ObjectStore, keys: Sequence[str], object_bytes: int, *, writable: bool = False
    ) -> StoredRegion:
        """Objects of one size, one after the other, as the remote end of this agent's reads and writes.

        Any bytes can be read, whole objects be written. `store` is what open_store() gives. Nothing is asked of it
        before the first transfer, which raises NotFoundError, InvalidRequestError for an object that is too small or
        not allowed, ConnectionLostError for a store that does not answer.
        Raises InvalidRequestError for keys or a size that cannot be, OverloadedError for too many.
        """
        assert self._listener is not None, "an agent registers objects after start()"
        link = ObjectLink(store, keys, object_bytes)
        return self._storage.register(link, link.size_bytes, writable=writable)

    # Peers

    def metadata(self, regions: Iterable[Region] | None = None) -> bytes:
        """What a peer needs to know, as bytes that may travel by any way that nobody else can read.

        It tells of all regions, or of these; those that a peer knew before, it knows no more.
        """
        assert self._listener is not None, "an agent has metadata after start()"
        metadata = AgentMetadata(name=self.name, address=self._listener.address, regions=self._regions.infos(regions))
        for target in self._targets:
            target.offer(metadata)
        return metadata.encode()

    def add_peer(self, metadata: bytes) -> str:
        """The peer's name. Metadata of a peer that is known already takes the place of the former.

        Raises InvalidRequestError for what is no metadata.
        """
        decoded = AgentMetadata.decode(metadata)
        known = self._peers.get(decoded.name)
        if known is None or not known.update(decoded):
            self.remove_peer(decoded.name)
            self._peers[decoded.name] = Peer(decoded, self._backends)
        return decoded.name

    def remove_peer(self, name: str) -> None:
        """Transfers with it end with ConnectionLostError. Idempotent."""
        peer = self._peers.pop(name, None)
        if peer is not None:
            leaving = in_background(peer.close(), f"transfer-{self.name}-leaves-{name}")
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    # Transfers

    def read(self, local: Blocks, remote: Blocks, *, timeout_s: float = TIMEOUT_S, checksum: bool = False) -> Transfer:
        """Copies blocks of a peer, a file or objects into blocks of the same sizes here.

        Raises InvalidRequestError at once for blocks that are not registered, not writable, or do not match. With
        `checksum` both ends compare what they have then, which for storage means to read it once more; a difference is
        an InternalError.
        """
        return self._begin(local, remote, timeout_s, write=False, checksum=checksum)

    def write(self, local: Blocks, remote: Blocks, *, timeout_s: float = TIMEOUT_S, checksum: bool = False) -> Transfer:
        """The other way round."""
        return self._begin(local, remote, timeout_s, write=True, checksum=checksum)

    # Notifications

    async def notify(self, peer: str, payload: bytes, *, timeout_s: float = TIMEOUT_S) -> None:
        """Returns when the peer has it. Raises ConnectionLostError, DeadlineExceededError, OverloadedError."""
        context = Context(deadline_s=time.monotonic() + timeout_s)
        await self._call(self._peer(peer), "notify", Notification(self.name, payload), context)

    async def notifications(self) -> AsyncIterator[Notification]:
        """What peers notify this agent of, without end; for one reader."""
        while True:
            yield await self._notifications.get()

    # Questions

    async def ask(self, peer: str, payload: bytes, *, timeout_s: float = TIMEOUT_S) -> bytes:
        """What the peer answers. Raises what its answerer does, and what notify() does."""
        context = Context(deadline_s=time.monotonic() + timeout_s)
        answer: bytes = await self._call(self._peer(peer), "ask", Notification(self.name, payload), context)
        return answer

    def answer_with(self, answerer: Answerer) -> None:
        """Who answers what peers ask from now on; a DynamoError that it raises is the asking one's."""
        self._answerer = answerer

    # How

    def _begin(self, local: Blocks, remote: Blocks, timeout_s: float, *, write: bool, checksum: bool) -> Transfer:
        peer = self._storage if self._storage.has(remote) else self._peer(remote.agent)
        if local.agent != self.name:
            raise InvalidRequestError(f"the local blocks are {local.agent!r}'s, not {self.name!r}'s")
        if not local.matches(remote):
            raise InvalidRequestError("local and remote blocks differ in number or in size")
        if self._under_way >= TRANSFERS_MAX:
            raise OverloadedError(f"{self._under_way} transfers are under way")
        deadline_s = time.monotonic() + timeout_s
        there = locate(remote, peer.regions, write=write)
        known = {span.region: peer.regions[span.region] for span in remote.spans}
        regions = list(known.values())
        here = {span.region: self._regions[span.region] for span in local.spans if span.region in self._regions}
        job = Job(
            write=write,
            local=locate(local, here, write=not write),
            remote=there,
            regions=tuple(regions),
            control=Control(deadline_s=deadline_s),
            keep=here,
            local_gpu=_gpu_of(here.values()),
            remote_gpu=_gpu_of(regions),
        )
        transfer = Transfer(there.size_bytes, job.control)
        gpus = job.local_gpu is not None or job.remote_gpu is not None
        if gpus and checksum:
            raise UnsupportedFeatureError("there are no checksums of the memory of GPUs")
        link = peer.ready_link(regions, gpus=gpus)
        little = link is not None and 0 < transfer.size_bytes <= link.inline_bytes_max and len(there) <= IOV_MAX
        if link is not None and little and not checksum:
            self._copy_at_once(transfer, peer, link, job)
            return transfer

        context = Context(deadline_s=deadline_s)

        async def work() -> None:
            link = await _before(context, peer.link(regions, gpus=gpus))
            await self._copy(transfer, peer, link, job, context)
            if checksum:
                vectors = locate(local, here, write=False), locate(remote, known, write=False)
                if not await self._same(peer, link, job, vectors, context):
                    raise InternalError(f"the bytes here are not those at {remote.agent!r}")

        self._under_way += 1
        transfer.run(work(), f"transfer-{self.name}-{remote.agent}", context, self._ended)
        return transfer

    def _ended(self) -> None:
        self._under_way -= 1

    def _copy_at_once(self, transfer: Transfer, peer: Peer | Storage, link: Link, job: Job) -> None:
        transfer.uses(link.name, [job])
        try:
            link.copy(job)
        except DynamoError as error:
            if isinstance(error, ConnectionLostError):
                peer.lost(link)
            transfer.failed(error)

    async def _copy(self, transfer: Transfer, peer: Peer | Storage, link: Link, job: Job, context: Context) -> None:
        """Returns, or raises, when nothing is copied any more."""
        job.control.check()
        jobs = job.parts(link.lanes)
        transfer.uses(link.name, jobs)
        futures = [peer.threads.submit(_copy_job, link, part) for part in jobs]
        copying = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        with _given_up_with(context, futures):
            try:
                results = await asyncio.shield(copying)
            except asyncio.CancelledError:  # by who ends the event loop
                job.control.cancelled.set()
                await asyncio.wait([copying])
                raise
        failures = [result for result in results if isinstance(result, BaseException)]
        if any(isinstance(failure, ConnectionLostError) for failure in failures):
            peer.lost(link)
        if failures:
            begun = [failure for failure in failures if not isinstance(failure, asyncio.CancelledError)]
            if not begun:
                job.control.check()
            # Of several, one that has made the others be cancelled.
            raise min(begun or failures, key=lambda failure: isinstance(failure, RequestCancelledError))

    async def _same(
        self, peer: Peer | Storage, link: Link, job: Job, vectors: tuple[Vector, Vector], context: Context
    ) -> bool:
        """Whether both ends have the same bytes; `vectors` are the job's before they were consumed.

        Returns, or raises, when nothing here is read any more.
        """
        here, there = vectors
        ours = self._threads.run(checksum_of_memory, here, job.keep, job.control)
        if isinstance(peer, Storage):
            theirs: Awaitable[int] = peer.threads.run(checksum_through, link, there, job.control)
        else:
            theirs = self._call(peer, "checksum", ChecksumRequest(job.keys, there.tobytes()), context)
        sums = await asyncio.gather(ours, theirs, return_exceptions=True)
        for each in sums:
            if isinstance(each, BaseException):
                raise each
        return sums[0] == sums[1]

    async def _call(self, peer: Peer, endpoint: str, message: Any, context: Context) -> Any:
        """The peer's only answer."""
        try:
            async with asyncio.timeout(context.remaining_s()):
                channel = await self._channels.get(peer.metadata.address)
                reply = channel.call(endpoint, encode_payload(message), context)
                try:
                    return _decode(await anext(reply))
                finally:
                    await reply.aclose()
        except TimeoutError as error:
            raise DeadlineExceededError(f"{peer.metadata.name!r} does not answer") from error

    def _peer(self, name: str) -> Peer:
        peer = self._peers.get(name)
        if peer is None:
            raise InvalidRequestError(f"{self.name!r} knows no peer {name!r}")
        return peer

    def _set_key(self, region_id: int, key: int) -> None:
        if key and self._regions[region_id].gpu is not None and not any(backend.gpus for backend in self._backends):
            raise UnsupportedFeatureError("memory of a cuda device can be registered with the backend nixl only")
        for target in self._targets:
            target.set_key(region_id, key)

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

    async def _on_ask(self, message: Notification) -> AsyncIterator[bytes]:
        if self._answerer is None:
            raise NotFoundError(f"{self.name!r} answers no questions")
        yield await self._answerer(message)

    async def _on_checksum(self, request: ChecksumRequest, context: Context) -> AsyncIterator[int]:
        remaining_s = context.remaining_s()
        control = Control(deadline_s=time.monotonic() + (TIMEOUT_S if remaining_s is None else remaining_s))
        try:
            yield await self._threads.run(self._checksum, request, control)
        finally:
            control.cancelled.set()  # the thread may still be at it

    def _checksum(self, request: ChecksumRequest, control: Control) -> int:
        vector, keep = self._regions.admit(request.keys, request.vector, write=False)
        return checksum_of_memory(vector, keep, control)


@contextmanager
def _given_up_with(context: Context, futures: Sequence["Future[None]"]) -> Iterator[None]:
    """Those that have not begun are cancelled with the context, or at its deadline. The others see it themselves."""

    def give_up() -> None:
        for future in futures:
            future.cancel()

    take_back = context.on_stop(lambda _: give_up())
    timer = asyncio.get_running_loop().call_later(max(context.remaining_s() or 0, 0), give_up)
    try:
        yield
    finally:
        timer.cancel()
        take_back()


async def _before(context: Context, waiting: Coroutine[Any, Any, T]) -> T:
    """What is waited for, which is cancelled at the deadline, or when the transfer is."""
    task = asyncio.ensure_future(waiting)

    def stop(_: Context) -> None:
        task.cancel()

    take_back = context.on_stop(stop)
    try:
        async with asyncio.timeout(context.remaining_s()):
            return await task
    except TimeoutError as error:
        raise DeadlineExceededError("the transfer's deadline passed") from error
    except asyncio.CancelledError:
        if not context.is_killed():
            raise
        raise RequestCancelledError("the transfer was cancelled") from None
    finally:
        take_back()


def _copy_job(link: Link, job: Job) -> None:
    try:
        link.copy(job)
    except BaseException:
        job.control.cancelled.set()  # the other parts are of no use without it
        raise


def _gpu_of(places: Iterable[Region | RegionInfo]) -> int | None:
    """Whose memory all of this is; None: the host's."""
    gpu: int | None = None
    for number, place in enumerate(places):
        if number and place.gpu != gpu:
            raise InvalidRequestError("blocks of one list lie in the memory of the host, or of one GPU")
        gpu = place.gpu
    return gpu


_decode = payload_decoder()
