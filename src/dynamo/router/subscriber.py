"""Follows the feeds of all live instances of an endpoint, whatever happens to them and to the connections."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

import msgspec

from dynamo.errors import ConnectionLostError, DynamoError
from dynamo.runtime.background import in_background
from dynamo.runtime.client import Client
from dynamo.runtime.event_feed import DumpPart, FeedCursor, FeedEvent, FeedItem, Step, Subscribe
from dynamo.runtime.handler import closing

logger = logging.getLogger(__name__)

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0


class FeedSink(Protocol):
    """What becomes of the events: a KvIndexer, for one."""

    def apply_payload(self, instance_id: int, payload: msgspec.Raw) -> None:
        """The next event of an instance."""
        ...

    def add_part(self, instance_id: int, payload: msgspec.Raw) -> None:
        """The next part of an instance's whole state: a dump. What was known before stays true until its end."""
        ...

    def end_dump(self, instance_id: int) -> None:
        """The parts, if there were any, are the state now."""
        ...

    def drop_dump(self, instance_id: int) -> None:
        """The parts that have come, if any, are void: the rest of them will not."""
        ...

    def forget(self, instance_id: int) -> None:
        """The instance is gone."""
        ...


def hand_on(item: FeedItem, step: Step, instance_id: int, sink: FeedSink) -> None:
    """Gives a sink what an instance's cursor says of an item; the caller sees to Step.GAP and Step.TOO_LARGE."""
    if step is Step.APPLY:
        assert isinstance(item, FeedEvent)
        sink.apply_payload(instance_id, item.payload)
    elif step in (Step.FIRST_PART, Step.PART):
        assert isinstance(item, DumpPart)
        if step is Step.FIRST_PART:
            sink.drop_dump(instance_id)
        sink.add_part(instance_id, item.payload)
    elif step is Step.REPLACE:
        sink.end_dump(instance_id)


class FeedSubscriber:
    """Keeps a state equal to that of the live instances.

    One task per instance reads its feed and, when the stream breaks, subscribes again after the last event that it
    has. An instance that discovery knows no more is forgotten.
    """

    def __init__(
        self, client: Client, sink: FeedSink, *, own_id: int | None = None, backoff_min_s: float = BACKOFF_MIN_S
    ) -> None:
        """`client` of the feeds' endpoint, with FeedItem as its response type; it stays the caller's to close.

        The instance `own_id` is passed over.
        """
        self.gaps = 0  # events were missing
        self.disconnects = 0  # a stream, or the attempt to open one, has failed
        self.recoveries = 0  # after either of them the state was right again, as the publisher has said
        self._client = client
        self._sink = sink
        self._own_id = own_id
        self._only: frozenset[int] | None = None
        self._backoff_min_s = backoff_min_s
        self._readers: dict[int, asyncio.Task[None]] = {}  # by instance id
        self._in_sync: set[int] = set()
        self._broken: set[int] = set()  # not followed at the moment, for another reason than being new
        self._warned: set[int] = set()  # whose feeds were said to have a defect
        self._part_turn = asyncio.Lock()
        self._follower = in_background(self._follow(), f"follow-{client.endpoint}")

    def has_feed(self, instance_id: int) -> bool:
        """Whether the state is the instance's, and hears of every change."""
        return instance_id in self._in_sync

    def follow_only(self, instance_ids: Iterable[int]) -> None:
        """From now on follows these instances, as far as they are live, and no others, which are forgotten."""
        self._only = frozenset(instance_ids)
        self._reconcile()

    async def close(self) -> None:
        """Ends the subscriptions; the state stays as it is."""
        tasks = [self._follower, *self._readers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for instance_id in self._readers:
            self._sink.drop_dump(instance_id)
        self._in_sync.clear()

    async def _follow(self) -> None:
        while True:
            self._reconcile()
            await self._client.wait_for_change()

    def _reconcile(self) -> None:
        """Brings the readers in line with who is there."""
        live = set(self._client.instance_ids()) - {self._own_id}
        if self._only is not None:
            live &= self._only
        for instance_id in self._readers.keys() - live:
            self._readers.pop(instance_id).cancel()
            self._in_sync.discard(instance_id)
            self._broken.discard(instance_id)
            self._warned.discard(instance_id)
            self._sink.forget(instance_id)
        for instance_id in live - self._readers.keys():
            reader = asyncio.create_task(self._read(instance_id), name=f"feed-{instance_id:x}")
            self._readers[instance_id] = reader

    async def _read(self, instance_id: int) -> None:
        """Reads an instance's feed for as long as it is there."""
        cursor = FeedCursor()
        backoff_s = self._backoff_min_s
        while True:
            before = cursor.last_id
            try:
                await self._read_stream(instance_id, cursor)
            except DynamoError as error:
                self.disconnects += 1
                logger.debug("the feed of instance %x: %s", instance_id, error)
            except Exception:  # the task's boundary
                logger.exception("the feed of instance %x could not be used", instance_id)
                cursor = FeedCursor()  # what has become of the state is uncertain, only a dump helps
            cursor.disconnected()
            self._sink.drop_dump(instance_id)
            self._in_sync.discard(instance_id)
            self._broken.add(instance_id)
            backoff_s = self._backoff_min_s if cursor.last_id != before else min(2 * backoff_s, BACKOFF_MAX_S)
            await asyncio.sleep(backoff_s)

    async def _read_stream(self, instance_id: int, cursor: FeedCursor) -> None:
        """Returns after a gap; raises the DynamoError that ended the stream."""
        stream = await self._client.direct(Subscribe(cursor.last_id), instance_id, annotated=False)
        async with closing(stream):
            async for item in stream:
                step = cursor.accept(item)
                if step in (Step.GAP, Step.TOO_LARGE):
                    self._warn(instance_id, step)
                    self.gaps += 1
                    return
                await self._take(instance_id, item, step)
        raise ConnectionLostError("the stream has ended")

    async def _take(self, instance_id: int, item: FeedItem, step: Step) -> None:
        if not isinstance(item, DumpPart):
            hand_on(item, step, instance_id, self._sink)
            if step in (Step.REPLACE, Step.RESUMED):
                self._synced(instance_id)
            return
        # A part takes its time, and a router that starts gets the dumps of all workers at once: one part in each turn
        # of the event loop, whosever it is.
        async with self._part_turn:
            hand_on(item, step, instance_id, self._sink)
            await asyncio.sleep(0)

    def _warn(self, instance_id: int, step: Step) -> None:
        if instance_id not in self._warned:
            self._warned.add(instance_id)
            what = "events are missing" if step is Step.GAP else "its dump is too large"
            logger.warning("the feed of instance %x is asked for once more: %s", instance_id, what)

    def _synced(self, instance_id: int) -> None:
        self._in_sync.add(instance_id)
        if instance_id in self._broken:
            self._broken.remove(instance_id)
            self.recoveries += 1
