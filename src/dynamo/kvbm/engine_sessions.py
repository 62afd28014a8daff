"""Which connections belong to an engine, and until when somebody may use the slots that it has."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from dynamo.kvbm.pool_shell import PoolShell
from dynamo.protocols.kvbm import Reply

Send = Callable[[Reply], None]


@dataclass(eq=False, slots=True)
class Session:
    """What the manager knows an engine's scheduler as. One that connects again has a new one."""

    number: int
    scheduler: object | None  # its connection
    users: set[object] = field(default_factory=set)  # connections of processes that may use its slots


class Engine:
    """One start of an engine, by its `owner`: a scheduler and ranks.

    A session ends when all connections are closed that the engine has had meanwhile, the scheduler's and the ranks'.
    Until then one of those processes may be in the midst of a copy.
    """

    def __init__(self, pool: PoolShell) -> None:
        self.pool = pool
        # Whoever speaks of slots says whose. A rank that comes when this engine is gone is another one's, by another
        # name: what it was to copy before that, it does not.
        self.name = secrets.token_hex(8)
        self._ranks: set[object] = set()
        self._sessions: list[Session] = []

    @property
    def is_gone(self) -> bool:
        return not self._ranks and not self._sessions

    def add_scheduler(self, connection: object, send: Send) -> Session:
        session = Session(self.pool.attach(send), connection, {connection, *self._ranks})
        self._sessions.append(session)
        return session

    def add_rank(self, connection: object) -> None:
        self._ranks.add(connection)
        for session in self._sessions:
            if session.scheduler is not None:
                session.users.add(connection)

    def remove(self, connection: object) -> None:
        """It was closed: by its process, or by the kernel when that was killed."""
        self._ranks.discard(connection)
        for session in tuple(self._sessions):
            if session.scheduler is connection:
                session.scheduler = None
                self.pool.mute(session.number)
            session.users.discard(connection)
            if not session.users:
                self._sessions.remove(session)
                self.pool.detach(session.number)
