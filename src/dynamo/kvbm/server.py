"""Who connects to the service, and what each is answered."""

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from dynamo.errors import ConfigError, DynamoError, OverloadedError, ProtocolError
from dynamo.kvbm.connection import Connection
from dynamo.kvbm.engine_sessions import Engine
from dynamo.kvbm.follower import Follower
from dynamo.kvbm.pools import Pools
from dynamo.kvbm.verify import verify
from dynamo.protocols.kvbm import (
    KVBM_VERSION,
    Attach,
    Attached,
    Clear,
    Commit,
    Discard,
    Done,
    Figures,
    Follow,
    Inspect,
    LookUp,
    Release,
    Report,
    Request,
    Stop,
    Verify,
)
from dynamo.runtime.acceptor import Acceptor
from dynamo.runtime.background import in_background

logger = logging.getLogger(__name__)

CONNECTIONS_MAX = 1024
_BACKLOG = 128


class KvbmServer:
    """Use it between start() and close()."""

    def __init__(self, path: Path, pools: Pools, stop: asyncio.Event) -> None:
        """`stop` is set when a client says so."""
        self._path = path
        self._pools = pools
        self._stop = stop
        self._acceptor: Acceptor | None = None
        self._connections: set[Connection] = set()
        self._sessions: dict[Connection, tuple[Engine, int]] = {}  # of schedulers
        self._owners: dict[Connection, str] = {}  # of schedulers and ranks
        self._followers: dict[Connection, Follower] = {}
        self._work: dict[Connection, asyncio.Task[None]] = {}  # for administrators, one thing at a time for each
        self._verifying: dict[Connection, asyncio.Task[None]] = {}  # of that, what is only for who asked

    def start(self) -> None:
        """Listens, in the place of a service that is gone. Raises ConfigError."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._path.unlink(missing_ok=True)  # whoever is elected may
            former = os.umask(0o077)
            try:
                listening.bind(str(self._path))
            finally:
                os.umask(former)
            listening.listen(_BACKLOG)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            raise ConfigError(f"cannot listen at {self._path}: {error}") from error
        self._acceptor = Acceptor(listening, lambda: Connection(self._on_made, self._on_request, self._on_closed))

    async def close(self) -> None:
        """All connections end. Idempotent."""
        if self._acceptor is None:
            return
        self._path.unlink(missing_ok=True)
        await self._acceptor.stop()
        self._acceptor = None
        for task in tuple(self._work.values()):
            task.cancel()
        for connection in tuple(self._connections):
            connection.close()

    def _on_made(self, connection: Connection) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            raise OverloadedError(f"there are {CONNECTIONS_MAX} connections already")
        self._connections.add(connection)

    # Requests

    def _on_request(self, connection: Connection, request: Request) -> None:
        match request:
            case LookUp() | Release() | Commit() | Discard() | Report():
                if connection not in self._sessions:
                    raise ProtocolError("this is for an engine's scheduler, which attaches first")
                engine, session = self._sessions[connection]
                engine.pool.on_request(session, request)
            case Attach():
                _check_version(request.version)
                self._attach(connection, request)
            case Follow():
                _check_version(request.version)
                self._follow(connection, request.owner)
            case Inspect():
                connection.send(Figures(pools=self._pools.figures()))
            case Clear():
                self._in_background(connection, self._clear(request))
            case Verify():
                self._verifying[connection] = self._in_background(connection, self._verify(request))
            case Stop():
                logger.info("a client says that the service is to end")
                connection.send(Done())
                self._stop.set()

    def _attach(self, connection: Connection, request: Attach) -> None:
        if connection in self._owners or connection in self._followers:
            raise ProtocolError("this connection has said already what it is")
        engine = self._pools.engine(request)
        arena = engine.pool.arena
        attached = Attached(
            slots=arena.slots, slot_bytes=arena.slot_bytes, memory_bytes=arena.memory_bytes, pool=engine.name
        )
        self._owners[connection] = request.owner
        connection.send_with(attached, arena.fd)
        if request.rank is None:
            self._sessions[connection] = (engine, engine.add_scheduler(connection, connection.send).number)
            self._greet(request.owner)
        else:
            engine.add_rank(connection)

    def _follow(self, connection: Connection, owner: str) -> None:
        if connection in self._owners or connection in self._followers:
            raise ProtocolError("this connection has said already what it is")
        self._followers[connection] = Follower(owner, connection)
        self._greet(owner)

    def _greet(self, owner: str) -> None:
        """An engine and its followers may come in any order."""
        engine = self._pools.engine_of(owner)
        if engine is not None:
            for follower in self._followers.values():
                if follower.owner == owner:
                    follower.follow(engine.pool, self._pools.figures_of)

    def _on_closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if (verifying := self._verifying.pop(connection, None)) is not None:
            verifying.cancel()  # what is cleared goes on: half of it would come back with the next service
        self._sessions.pop(connection, None)
        if (owner := self._owners.pop(connection, None)) is not None:
            self._pools.left(owner, connection)
            if self._pools.engine_of(owner) is None:
                self._take_leave(owner)
        if (follower := self._followers.pop(connection, None)) is not None:
            follower.close()

    def _take_leave(self, owner: str) -> None:
        for follower in self._followers.values():
            if follower.owner == owner:
                follower.leave()

    # Administration

    def _in_background(self, connection: Connection, work: Coroutine[Any, Any, Done]) -> asyncio.Task[None]:
        if connection in self._work:
            work.close()
            raise ProtocolError("this connection has asked for something that is not done yet")

        async def run() -> None:
            try:
                done = await work
            except DynamoError as error:
                ended(task)
                connection.refuse(error)
            else:
                ended(task)
                connection.send(done)

        def ended(task: asyncio.Task[None]) -> None:
            if self._work.get(connection) is task:  # who has an answer may have asked for more
                del self._work[connection]

        task = in_background(run(), "kvbm-administration")
        self._work[connection] = task
        task.add_done_callback(ended)  # also when it was cancelled
        return task

    async def _clear(self, request: Clear) -> Done:
        for pool in self._pools.named(request.namespace):
            await pool.clear(request.tiers)
        return Done()

    async def _verify(self, request: Verify) -> Done:
        results = [await verify(pool) for pool in self._pools.named(request.namespace)]
        return Done(checked=sum(done.checked for done in results), dropped=sum(done.dropped for done in results))


def _check_version(version: int) -> None:
    if version != KVBM_VERSION:
        raise ConfigError(
            f"the block manager speaks version {KVBM_VERSION}, its client {version}: stop it by `dynamo kvbm stop`, so"
            " that the next worker starts its own"
        )
