"""NIXL, as far as transfers need it: one agent of that library, which all links of ours share.

What was found out about NIXL 1.5.1 with UCX, and why the code is as it is:

- It is driven through its bindings. `nixl_agent` of `nixl._api` sets the pause of the thread that makes progress to
  zero, and that thread then takes most of a core for as long as the agent lives; with a pause it sleeps until something
  comes.
- Nothing ends a transfer early: after its handle was released, and after the peer was removed, its bytes still come
  (seen over TCP). So memory is given back when the transfer is over, or when the whole agent has been destroyed, after
  which nothing comes. For the first to be soon, what is moved at a time should be small.
- A process that hung, with others' transfers under way over TCP, may be ended by UCX when it goes on and those others
  are gone ("Endpoint timeout").
- Between two processes with GPUs that no NVLink joins, one GPU for both included, UCX by itself does not read by CUDA
  IPC but over TCP, by way of the host: 0.4 GB/s on an H100, where CUDA IPC has over 20. See set_defaults().
- Within a host UCX copies while the transfer is posted, in the caller's thread and without the GIL.
"""

import importlib
import importlib.util
import logging
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamo.errors import ConfigError, ConnectionLostError, DynamoError
from dynamo.transfer.nixl_way import Way

logger = logging.getLogger(__name__)

INSTALL = "pip install --no-deps nixl==1.5.1 nixl-cu12==1.5.1"
_BUILDS = ("nixl_cu12", "nixl_cu13", "nixl_rocm")
_DEVICES = Path("/dev")
_PAUSE_US = 100_000  # of the progress thread, when nothing wakes it
_POLL_S_MAX = 0.001
_GRACE_S = 2.0  # how long a chunk that nobody waits for any more may take to its end, before the agent is destroyed

Descriptor = tuple[int, int, int]  # address, size in bytes, number of the GPU or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What is moved without a look up in between; the descriptors of both sides have the same sizes."""

    write: bool
    local: list[Descriptor]
    remote: list[Descriptor]
    local_on_gpu: bool = False
    remote_on_gpu: bool = False


def set_defaults(environ: MutableMapping[str, str]) -> None:
    """What UCX should find when it starts, in this process or a child; what the user has set stays.

    Nothing on hosts without a GPU: UCX warns of variables that are another machine's.
    """
    if has_gpus():
        environ.setdefault("UCX_CUDA_IPC_ENABLE_GET_ZCOPY", "y")


def has_gpus() -> bool:
    """Whether this host has GPUs that NIXL knows."""
    return any(_DEVICES.glob("nvidia[0-9]*"))


class NixlLibrary:
    """For any thread. Methods that use the agent raise ConnectionLostError once close() was called, or NIXL fails."""

    def __init__(self) -> None:
        """Raises ConfigError where NIXL is not installed, or does not work."""
        set_defaults(os.environ)
        self._bindings = _load()
        errors = (value for name, value in vars(self._bindings).items() if name.endswith("Error"))
        self._errors: tuple[type[Exception], ...] = tuple(errors)
        self.name = f"dynamo-{secrets.token_hex(12)}"
        self._ways: weakref.WeakValueDictionary[str, Way] = weakref.WeakValueDictionary()
        self._condition = threading.Condition()
        self._users = 0
        self._closing = False
        config = self._bindings.nixlAgentConfig()
        config.useProgThread = True
        config.pthrDelay = _PAUSE_US
        config.syncMode = self._bindings.NIXL_THREAD_SYNC_RW
        try:
            self._agent = self._bindings.nixlAgent(self.name, config)
            self._backend = self._agent.createBackend("UCX", {})
        except self._errors as error:
            raise ConfigError(f"NIXL does not work here: {error}") from error

    def register(self, address: int, size_bytes: int, gpu: int | None) -> Any:
        """A handle for describe() and deregister()."""
        kind = self._kind(gpu is not None)
        handle = self._bindings.nixlRegDList(kind, [(address, size_bytes, gpu or 0, "")])
        with self._used():
            self._agent.registerMem(handle, [self._backend])
        return handle

    def describe(self, handle: Any, *, connection: bool = False) -> bytes:
        """What a peer has to know() of this memory; with `connection` also of the way here."""
        with self._used():
            described: bytes = self._agent.getLocalPartialMD(handle, connection, [self._backend])
        return described

    def deregister(self, handle: Any) -> None:
        with self._used():
            self._agent.deregisterMem(handle, [self._backend])

    def way(self, peer: str) -> Way:
        """The same one for all links to this peer, as long as there are any."""
        with self._condition:
            way = self._ways.get(peer)
            if way is None:
                way = self._ways[peer] = Way()
            return way

    def know(self, described: bytes) -> None:
        """What describe() said elsewhere."""
        with self._used():
            self._agent.loadRemoteMD(described)

    def forget(self, peer: str) -> None:
        """Also disconnects. Nothing may be under way with it. Idempotent."""
        try:
            with self._used():
                self._agent.invalidateRemoteMD(peer)
        except ConnectionLostError:
            return  # it was not known, or all is closed

    def move(self, peer: str, chunk: Chunk, check: Callable[[], None]) -> None:
        """Blocks until the chunk was moved; then, or after a failure, nothing of it is under way.

        What `check()` raises is raised at the end of the chunk. Where that does not come within a moment the peer
        hangs, and the agent has to be destroyed: transfers with other peers end with ConnectionLostError too.
        """
        try:
            with self._used():
                self._move(peer, chunk, check)
        except _AbandonedError as abandoned:
            if not self.closing:
                logger.error("NIXL is shut down in this agent: a peer that hangs may still reach its memory")
            self.close()
            raise abandoned.reason from None

    @property
    def closing(self) -> bool:
        """Whether it is of no use any more."""
        return self._closing

    def close(self) -> None:
        """Blocks until nobody uses it, and nothing is under way any more. Idempotent."""
        with self._condition:
            self._closing = True
            while self._users:
                self._condition.wait()
            self._agent = None  # destroys it

    def _move(self, peer: str, chunk: Chunk, check: Callable[[], None]) -> None:
        bindings = self._bindings
        handle = self._agent.createXferReq(
            bindings.NIXL_WRITE if chunk.write else bindings.NIXL_READ,
            bindings.nixlXferDList(self._kind(chunk.local_on_gpu), chunk.local),
            bindings.nixlXferDList(self._kind(chunk.remote_on_gpu), chunk.remote),
            peer,
            b"",
            [self._backend],
        )
        waiting = _Waiting(check)
        try:
            state = self._agent.postXferReq(handle, b"")
            while state == bindings.NIXL_IN_PROG:
                if self.closing:
                    raise _AbandonedError(ConnectionLostError("nixl: it was closed"))
                waiting.pause()
                state = self._agent.getXferStatus(handle)
        except self._errors:
            with suppress(*self._errors):
                self._agent.releaseXferReq(handle)
            raise
        self._agent.releaseXferReq(handle)
        if state != bindings.NIXL_SUCCESS:
            raise ConnectionLostError(f"nixl: the transfer has failed: {state}")
        if waiting.unwanted is not None:
            raise waiting.unwanted

    @contextmanager
    def _used(self) -> Iterator[None]:
        """The agent is not destroyed meanwhile.

        It stands in `_agent` and nowhere else: a local variable lives on in the traceback of an error, and the agent
        would with it.
        """
        with self._condition:
            if self._closing:
                raise ConnectionLostError("nixl: it was closed")
            self._users += 1
        try:
            yield
        except self._errors as error:
            raise ConnectionLostError(f"nixl: {error}") from error
        finally:
            with self._condition:
                self._users -= 1
                self._condition.notify_all()

    def _kind(self, on_gpu: bool) -> Any:
        return self._bindings.VRAM_SEG if on_gpu else self._bindings.DRAM_SEG


class _AbandonedError(Exception):
    """A chunk is under way still, and its memory must not be given back."""

    def __init__(self, reason: DynamoError) -> None:
        super().__init__(reason)
        self.reason = reason


class _Waiting:
    """For the end of a chunk."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.unwanted: DynamoError | None = None  # why nobody waits any more
        self._check = check
        self._begin_s = time.monotonic()
        self._end_s = float("inf")

    def pause(self) -> None:
        """Raises _AbandonedError when it has taken too long."""
        now_s = time.monotonic()
        if self.unwanted is None:
            try:
                self._check()
            except DynamoError as error:
                self.unwanted = error
                self._end_s = now_s + _GRACE_S
        elif now_s >= self._end_s:
            raise _AbandonedError(self.unwanted)
        time.sleep(min((now_s - self._begin_s) / 8, _POLL_S_MAX))  # short waits end soon, long ones cost little


def is_installed() -> bool:
    try:
        _load()
    except ConfigError as error:
        logger.debug("no transfers by NIXL: %s", error)
        return False
    return True


def _load() -> Any:
    builds = [name for name in _BUILDS if importlib.util.find_spec(name)]
    chosen = builds[0] if len(builds) == 1 else "nixl"  # which chooses by torch's CUDA, and may import torch for that
    try:
        return importlib.import_module(f"{chosen}._bindings")
    except ImportError as error:
        raise ConfigError(f"the transfer backend nixl needs NIXL ({error}): {INSTALL}") from error
