"""Engines, what they have, and the slots that they are kept supplied with."""

from collections.abc import Sequence

from dynamo.errors import InvalidRequestError
from dynamo.kvbm.block import Block
from dynamo.kvbm.effects import Effect, Grant
from dynamo.kvbm.lookups import Lookup
from dynamo.kvbm.pool import HostPool
from dynamo.kvbm.room import Room

_POOL_SHARE = 16  # an engine has at hand a sixteenth of the pool at most
_REFILL_SHARE = 8  # it gets new ones when an eighth of what it should have is missing


class Session:
    """An engine's slots to fill, and its lookups."""

    __slots__ = ("fills", "lookups", "number", "slots")

    def __init__(self, number: int, *, fills: bool) -> None:
        self.number = number
        self.fills = fills
        self.slots: dict[int, Block] = {}
        self.lookups: dict[int, Lookup] = {}


class Grants:
    """The sessions by their number."""

    def __init__(self, pool: HostPool, room: Room, effects: list[Effect], *, grant_slots: int) -> None:
        self._pool = pool
        self._room = room
        self._effects = effects
        self._grant_slots = grant_slots
        self._sessions: dict[int, Session] = {}
        self._granted = 0

    def attach(self, number: int, *, fills: bool = True) -> None:
        """A new session. InvalidRequestError if there is one of this number."""
        if number in self._sessions:
            raise InvalidRequestError(f"session {number} is attached already")
        self._sessions[number] = Session(number, fills=fills)

    def session(self, number: int) -> Session:
        """The session of this number; InvalidRequestError if there is none."""
        session = self._sessions.get(number)
        if session is None:
            raise InvalidRequestError(f"session {number} is not attached")
        return session

    def detach(self, number: int) -> Session:
        """The session is over: its slots are free again."""
        session = self.session(number)
        del self._sessions[number]
        self.give_back(session, list(session.slots))
        return session

    def take_back(self, session: Session, slot: int) -> Block:
        """The session has filled this slot; InvalidRequestError if it was not its own to fill."""
        block = session.slots.pop(slot, None)
        if block is None:
            raise InvalidRequestError(f"slot {slot} was not granted to session {session.number}")
        self._granted -= 1
        block.owner = None
        return block

    def give_back(self, session: Session, slots: Sequence[int]) -> None:
        """The session does not need these slots; InvalidRequestError, and nothing done, if one is not its own."""
        if len(set(slots)) != len(slots) or not session.slots.keys() >= set(slots):
            raise InvalidRequestError(
                f"not all of these slots were granted to session {session.number}, or not once each"
            )
        for slot in slots:
            self._pool.give_back(self.take_back(session, slot))

    def supply(self, now_s: float, reserve: int) -> None:
        """Grants what is missing, to who has least first; `reserve` slots are to be left free."""
        if not self._sessions:
            return
        quota = max(1, min(self._grant_slots, len(self._pool.blocks) // _POOL_SHARE))
        refill = max(1, quota // _REFILL_SHARE)
        filling = [session for session in self._sessions.values() if session.fills]
        short = [session for session in filling if quota - len(session.slots) >= refill]
        allowed = max(1, len(self._pool.blocks) // 2) - self._granted  # the rest is for blocks
        missing = sum(quota - len(session.slots) for session in short)
        self._room.make(max(0, min(missing, allowed)) + reserve, now_s)
        for session in sorted(short, key=lambda session: len(session.slots)):
            granted = self._grant(session, min(quota - len(session.slots), allowed))
            allowed -= granted

    def _grant(self, session: Session, count: int) -> int:
        slots: list[int] = []
        while len(slots) < count and (block := self._pool.take()) is not None:
            block.owner = session.number
            session.slots[block.index] = block
            slots.append(block.index)
        self._granted += len(slots)
        if slots:
            self._effects.append(Grant(session.number, tuple(slots)))
        return len(slots)
