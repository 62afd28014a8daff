"""Follows the feeds of all live instances of an endpoint, whatever happens to them and to the connections.

A feed is read from the instance itself, in a stream. Where the event plane carries it as well, the stream is only
needed to begin with and to fill gaps: once a broadcast continues what the stream has given, the stream is closed; when
broadcasts have a gap or stop, it is opened again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import Protocol

import msgspec

from dynamo.errors import ConnectionLostError, DynamoError
from dynamo.runtime.background import kept_up
from dynamo.runtime.backoff import Backoff
from dynamo.runtime.client import Client
from dynamo.runtime.codec import PAYLOAD_ERRORS, payload_decoder
from dynamo.runtime.event_feed import DumpPart, FeedCursor, FeedEvent, FeedItem, Step, Subscribe
from dynamo.runtime.event_plane.base import EventPlane
from dynamo.runtime.event_plane.direct import DirectPlane
from dynamo.runtime.feed_broadcast import BEAT_S, Broadcast
from dynamo.runtime.handler import closing

logger = logging.getLogger(__name__)

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
SILENCE_S = 3 * BEAT_S  # then broadcasts have stopped


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


class FollowedFeed:
    """One instance's."""

    def __init__(self) -> None:
        self.cursor = FeedCursor()
        self.reader: asyncio.Task[None] | None = None
        self.stream: asyncio.Timeout | None = None  # around the reading of it, while it is open
        self.in_sync = False  # the state is the instance's, and hears of every change
        self.broken = False  # not followed at the moment, for another reason than being new
        self.warned = False  # it was said to have a defect
        self.heard_s = 0.0  # when there was a broadcast that continued the state, by the event loop's clock
        self.broadcasts_ended = asyncio.Event()

    @property
    def is_broadcast(self) -> bool:
        """Whether it is followed without a stream."""
        return self.in_sync and self.stream is None

    def hand_over(self) -> None:
        """Broadcasts go on from here."""
        if self.stream is not None:
            self.broadcasts_ended.clear()
            self._end_stream()

    def begin_anew(self) -> None:
        """What has become of the state is uncertain: only a dump helps."""
        self.cursor = FeedCursor()
        self.in_sync = False
        self._end_stream()
        self.broadcasts_ended.set()

    async def until_broadcasts_end(self) -> None:
        """Returns when they no longer continue the state, or are silent: broadcasts_ended tells which."""
        loop = asyncio.get_running_loop()
        while (left_s := self.heard_s + SILENCE_S - loop.time()) > 0 and not self.broadcasts_ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self.broadcasts_ended.wait()

    def _end_stream(self) -> None:
        if self.stream is not None and not self.stream.expired():
            self.stream.reschedule(asyncio.get_running_loop().time())


class FeedSubscriber:
    """Keeps a state equal to that of the live instances.

    One task per instance reads its feed and, when the stream breaks, subscribes again after the last event that it
    has. An instance that discovery knows no more is forgotten.
    """

    def __init__(
        self,
        client: Client,
        sink: FeedSink,
        *,
        event_plane: EventPlane | None = None,
        own_id: int | None = None,
        backoff_min_s: float = BACKOFF_MIN_S,
    ) -> None:
        """`client` of the feeds' endpoint, with FeedItem as its response type; it stays the caller's to close.

        `event_plane` may carry the feeds as well. The instance `own_id` is passed over.
        """
        self.gaps = 0  # events were missing
        self.disconnects = 0  # a stream, or the attempt to open one, has failed, or broadcasts have stopped
        self.recoveries = 0  # after either of them the state was right again, as the publisher has said
        self._client = client
        self._sink = sink
        self._own_id = own_id
        self._only: frozenset[int] | None = None
        self._backoff_min_s = backoff_min_s
        self._feeds: dict[int, FollowedFeed] = {}  # by instance id
        self._part_turn = asyncio.Lock()
        self._decode = payload_decoder(Broadcast)
        plane = event_plane or DirectPlane()
        self._broadcasts = plane.subscribe(client.endpoint, self._on_broadcast, self._on_broadcasts_lost)
        self._follower = kept_up(self._follow, f"follow-{client.endpoint}")

    def has_feed(self, instance_id: int) -> bool:
        """Whether the state is the instance's, and hears of every change."""
        feed = self._feeds.get(instance_id)
        return feed is not None and feed.in_sync

    @property
    def broadcast_feeds(self) -> int:
        """How many are followed by broadcasts alone."""
        return sum(feed.is_broadcast for feed in self._feeds.values())

    def follow_only(self, instance_ids: Iterable[int]) -> None:
        """From now on follows these instances, as far as they are live, and no others, which are forgotten."""
        self._only = frozenset(instance_ids)
        self._reconcile()

    async def close(self) -> None:
        """Ends the subscriptions; the state stays as it is."""
        self._broadcasts.close()
        tasks = [self._follower, *(feed.reader for feed in self._feeds.values() if feed.reader is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for instance_id, feed in self._feeds.items():
            self._sink.drop_dump(instance_id)
            feed.in_sync = False

    async def _follow(self) -> None:
        while True:
            self._reconcile()
            await self._client.wait_for_change()

    def _reconcile(self) -> None:
        """Brings the readers in line with who is there."""
        live = set(self._client.instance_ids()) - {self._own_id}
        if self._only is not None:
            live &= self._only
        for instance_id in self._feeds.keys() - live:
            reader = self._feeds.pop(instance_id).reader
            if reader is not None:
                reader.cancel()
            self._sink.forget(instance_id)
        for instance_id in live - self._feeds.keys():
            feed = self._feeds[instance_id] = FollowedFeed()
            feed.reader = asyncio.create_task(self._read(instance_id, feed), name=f"feed-{instance_id:x}")

    async def _read(self, instance_id: int, feed: FollowedFeed) -> None:
        """Reads an instance's feed for as long as it is there."""
        backoff = Backoff(self._backoff_min_s, BACKOFF_MAX_S)
        while True:
            before = feed.cursor.last_id
            is_broadcast = False
            try:
                is_broadcast = await self._read_stream(instance_id, feed)
            except DynamoError as error:
                self.disconnects += 1
                logger.debug("the feed of instance %x: %s", instance_id, error)
            except Exception:  # the task's boundary
                logger.exception("the feed of instance %x could not be used", instance_id)
                feed.begin_anew()
            feed.cursor.disconnected()
            self._sink.drop_dump(instance_id)
            if is_broadcast:
                await feed.until_broadcasts_end()
                self.disconnects += not feed.broadcasts_ended.is_set()
                is_broadcast = feed.in_sync  # else there was a defect, which needs no haste
            feed.in_sync, feed.broken = False, True
            if is_broadcast or feed.cursor.last_id != before:
                backoff.reset()
            if not is_broadcast:
                await asyncio.sleep(backoff.next_s())

    async def _read_stream(self, instance_id: int, feed: FollowedFeed) -> bool:
        """Returns after a gap, or with True when broadcasts go on; raises the DynamoError that ended the stream."""
        try:
            async with asyncio.timeout(None) as feed.stream:
                await self._take_all(instance_id, feed)
                return False
        except TimeoutError:
            return feed.in_sync
        finally:
            feed.stream = None

    async def _take_all(self, instance_id: int, feed: FollowedFeed) -> None:
        cursor = feed.cursor
        request = Subscribe(cursor.last_id, cursor.feed_id)
        stream = await self._client.direct(request, instance_id, annotated=False)
        async with closing(stream):
            async for item in stream:
                step = cursor.accept(item)
                if step in (Step.GAP, Step.TOO_LARGE):
                    self._warn(instance_id, feed, step)
                    self.gaps += 1
                    return
                await self._take(instance_id, feed, item, step)
        raise ConnectionLostError("the stream has ended")

    async def _take(self, instance_id: int, feed: FollowedFeed, item: FeedItem, step: Step) -> None:
        if not isinstance(item, DumpPart):
            hand_on(item, step, instance_id, self._sink)
            if step in (Step.REPLACE, Step.RESUMED):
                self._synced(feed)
            return
        # A part takes its time, and a router that starts gets the dumps of all workers at once: one part in each turn
        # of the event loop, whosever it is.
        async with self._part_turn:
            hand_on(item, step, instance_id, self._sink)
            await asyncio.sleep(0)

    def _on_broadcast(self, instance_id: int, payload: bytes) -> None:
        """What has come by the event plane; the stream, as long as it is there, sees to what this does not continue."""
        feed = self._feeds.get(instance_id)
        if feed is None or not feed.in_sync or feed.cursor.in_dump:
            return
        try:
            message: Broadcast = self._decode(payload)
        except PAYLOAD_ERRORS as error:
            logger.debug("a broadcast of instance %x makes no sense: %s", instance_id, error)
            return
        new = feed.cursor.accept_broadcast(message)
        if new is not None:
            self._apply(instance_id, feed, new)
            if not message.payloads:  # a beat: so that a feed changes hands once a second at most
                feed.hand_over()
        elif feed.stream is None and not feed.broadcasts_ended.is_set():
            self.gaps += 1
            feed.broadcasts_ended.set()

    def _apply(self, instance_id: int, feed: FollowedFeed, payloads: Iterable[msgspec.Raw]) -> None:
        feed.heard_s = asyncio.get_running_loop().time()
        try:
            for payload in payloads:
                self._sink.apply_payload(instance_id, payload)
        except Exception:  # as in a reader's task
            logger.exception("the feed of instance %x could not be used", instance_id)
            feed.begin_anew()

    def _on_broadcasts_lost(self) -> None:
        for feed in self._feeds.values():
            self.disconnects += feed.is_broadcast
            feed.broadcasts_ended.set()

    def _warn(self, instance_id: int, feed: FollowedFeed, step: Step) -> None:
        if not feed.warned:
            feed.warned = True
            what = "events are missing" if step is Step.GAP else "its dump is too large"
            logger.warning("the feed of instance %x is asked for once more: %s", instance_id, what)

    def _synced(self, feed: FollowedFeed) -> None:
        feed.in_sync = True
        if feed.broken:
            feed.broken = False
            self.recoveries += 1
