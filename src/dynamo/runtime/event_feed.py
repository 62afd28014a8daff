"""Events as an endpoint: a subscriber says which event it has seen last, and gets every later one, in order.

When the publisher no longer has those events, or nobody has asked before, the subscriber gets a dump of the present
state instead, and the events after it. So it need not be there from the start, may go and come back, and may be slow:
none of that costs the publisher more than the room for its latest events.

    feed = EventFeed(dump=...)                     # the publisher
    await feed.start(endpoint)
    feed.publish(event)

    cursor = FeedCursor()                          # a subscriber
    async for item in await client.direct(Subscribe(cursor.last_id), instance_id, annotated=False):
        step = cursor.accept(item)
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from enum import Enum, auto
from typing import Any

import msgspec

from dynamo.runtime.codec import encode_payload
from dynamo.runtime.component import Endpoint
from dynamo.runtime.feed_broadcast import Broadcast, FeedBroadcaster

EVENTS_MAX = 8192
BYTES_MAX = 32 << 20
DUMP_BYTES_MAX = 256 << 20  # four times what the blocks take that a router can hold
_FEED_ID_BITS = 53


class Subscribe(msgspec.Struct, array_like=True, frozen=True):
    """The request: `after` is the id of the last event seen, None for a dump; of which feed, if that is known."""

    after: int | None = None
    feed_id: int = 0


class FeedEvent(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """Event number `id`; numbers have no gaps."""

    id: int
    payload: msgspec.Raw


class DumpPart(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Part `number`, from 0 on, of the state as it was after event number `id`."""

    id: int
    number: int
    payload: msgspec.Raw


class DumpEnd(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """The dump is complete when that many parts of it are there; event `id` + 1 comes next."""

    id: int
    parts: int
    feed_id: int = 0


class Resumed(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """The stream goes on where the subscriber's last one has ended: after event number `id` nothing is missing."""

    id: int
    feed_id: int = 0


FeedItem = FeedEvent | DumpPart | DumpEnd | Resumed


class EventFeed:
    """The publishing end. `publish` never waits, and an event is encoded once for all subscribers."""

    def __init__(
        self,
        dump: Callable[[], Iterable[Any]],
        *,
        events_max: int = EVENTS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        """`dump` gives the present state in parts; later changes must not show in them, however late they are taken.

        `events_max` and `bytes_max` bound what is kept for subscribers that are behind.
        """
        self._dump = dump
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._kept: deque[bytes] = deque()  # the latest events, encoded as FeedEvents
        self._kept_bytes = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._broadcaster: FeedBroadcaster | None = None
        self.feed_id = secrets.randbits(_FEED_ID_BITS) or 1  # another of the same endpoint has another
        self.last_id = 0

    async def start(self, endpoint: Endpoint) -> None:
        """Serves the feed at `endpoint` until its runtime shuts down, and broadcasts it where the runtime has a way to.

        Raises what Endpoint.start() raises.
        """
        await endpoint.start(self.serve, request_type=Subscribe)
        if not self._closed:
            self._broadcaster = FeedBroadcaster(endpoint, self.feed_id, self.last_id)
        self._closing = asyncio.create_task(self._close_with(endpoint), name=f"feed-{endpoint}")

    def publish(self, event: Any) -> int:
        """Appends an event, any msgpack-able value; returns its id."""
        payload = msgspec.Raw(encode_payload(event))
        encoded = encode_payload(FeedEvent(self.last_id + 1, payload))
        self.last_id += 1  # not before: what cannot be encoded has no number
        self._kept.append(encoded)
        self._kept_bytes += len(encoded)
        while len(self._kept) > self._events_max or self._kept_bytes > self._bytes_max:
            self._kept_bytes -= len(self._kept.popleft())
        self._wake()
        if self._broadcaster is not None:
            self._broadcaster.add(payload)
        return self.last_id

    async def serve(self, request: Subscribe) -> AsyncIterator[msgspec.Raw]:
        """The endpoint's handler: FeedItems without end."""
        position = request.after if request.feed_id in (0, self.feed_id) else None
        if position is not None and self._has_after(position) and not self._closed:
            yield _encoded(Resumed(position, self.feed_id))  # at once: there may be no event for long
        while not self._closed:
            if position is None or not self._has_after(position):
                position = self.last_id
                parts = self._dump()  # with last_id one snapshot: nothing has been awaited in between
                count = 0
                for part in parts:
                    yield _encoded(DumpPart(position, count, msgspec.Raw(encode_payload(part))))
                    count += 1
                yield _encoded(DumpEnd(position, count, self.feed_id))
            elif position == self.last_id:
                await self._published()
            else:
                event = self._kept[position - self.last_id]  # the last one is [-1]
                position += 1
                yield msgspec.Raw(event)

    def close(self) -> None:
        """Ends the streams of all subscribers; idempotent."""
        self._closed = True
        self._wake()
        if self._broadcaster is not None:
            self._broadcaster.close()
            self._broadcaster = None
        if self._closing is not None:
            self._closing.cancel()

    def _has_after(self, position: int) -> bool:
        return self.last_id - len(self._kept) <= position <= self.last_id

    async def _published(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():  # else its subscriber has just left
                waiter.set_result(None)
        self._waiters.clear()

    async def _close_with(self, endpoint: Endpoint) -> None:
        """A stream without end would hold up the shutdown, which waits for requests under way."""
        await endpoint.runtime.wait_for_shutdown()
        self.close()


def _encoded(item: FeedItem) -> msgspec.Raw:
    return msgspec.Raw(encode_payload(item))


class Step(Enum):
    """What an item means for its subscriber."""

    APPLY = auto()  # the event continues the state
    FIRST_PART = auto()  # of a dump; what there was of another will not be finished
    PART = auto()  # the next one
    REPLACE = auto()  # the dump is complete: its parts are the state now
    RESUMED = auto()  # the state is the publisher's again, as far as it goes
    NOTHING = auto()  # known already
    GAP = auto()  # something is missing: subscribe again after last_id
    TOO_LARGE = auto()  # a dump is, which is as good as a lost one


class FeedCursor:
    """A subscriber's place in a feed. Pure; survives the connection.

    It relies on nothing about the way: items may be lost, doubled or late. The parts of a dump are its subscriber's to
    keep, apart from the state until the dump is complete; after GAP and TOO_LARGE there will be no more of them.
    """

    def __init__(self, *, dump_bytes_max: int = DUMP_BYTES_MAX) -> None:
        """Of no dump more than `dump_bytes_max` is taken."""
        self.last_id: int | None = None  # of the last event that is part of the state
        self.feed_id = 0  # whose event that is; 0 where the publisher does not say
        self._dump_bytes_max = dump_bytes_max
        self._dump_id = 0
        self._parts = 0  # of the dump that has begun
        self._parts_bytes = 0

    def disconnected(self) -> None:
        """What was begun on the old connection will not be finished."""
        self._parts = self._parts_bytes = 0

    def accept(self, item: FeedItem) -> Step:
        if isinstance(item, DumpPart):
            return self._add_part(item)
        if isinstance(item, DumpEnd):
            return self._end_dump(item)
        if isinstance(item, Resumed):
            return Step.RESUMED if (item.id, item.feed_id) == (self.last_id, self.feed_id) else Step.GAP
        if self.last_id is None:
            return Step.GAP
        if item.id <= self.last_id:
            return Step.NOTHING
        if item.id > self.last_id + 1:
            return Step.GAP
        self.last_id = item.id
        return Step.APPLY

    @property
    def in_dump(self) -> bool:
        """Whether a dump has begun that has not ended."""
        return self._parts > 0

    def accept_broadcast(self, message: Broadcast) -> Sequence[msgspec.Raw] | None:
        """The events in it that are new, which are part of the state from now on; None if it does not continue it."""
        if self.last_id is None or message.feed_id != self.feed_id or message.after > self.last_id:
            return None
        new = message.payloads[self.last_id - message.after :]
        self.last_id = max(self.last_id, message.last_id)
        return new

    def _add_part(self, part: DumpPart) -> Step:
        if part.number == 0:
            self._dump_id, self._parts, self._parts_bytes = part.id, 0, 0
        elif part.id == self._dump_id and part.number < self._parts:
            return Step.NOTHING
        elif part.id != self._dump_id or part.number > self._parts:
            return Step.GAP
        self._parts_bytes += len(memoryview(part.payload))
        if self._parts_bytes > self._dump_bytes_max:
            return Step.TOO_LARGE
        self._parts += 1
        return Step.PART if part.number else Step.FIRST_PART

    def _end_dump(self, end: DumpEnd) -> Step:
        if self._parts != end.parts or (end.parts and end.id != self._dump_id):
            return Step.GAP
        self._parts = self._parts_bytes = 0
        self.last_id, self.feed_id = end.id, end.feed_id
        return Step.REPLACE
