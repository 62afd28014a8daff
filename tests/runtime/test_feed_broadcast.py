"""What a feed says to many at once, and that whoever hears it in whatever order knows where it is."""

import asyncio
from collections.abc import Callable

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.event_feed import DumpEnd, EventFeed, FeedCursor, FeedEvent, Step
from dynamo.runtime.event_plane.base import OnMessage, Part
from dynamo.runtime.feed_broadcast import Broadcast
from dynamo.runtime.instance import EndpointId
from dynamo.testing import within

FEED = 5


def payload(number: int) -> Raw:
    return Raw(encode_payload(number))


def numbers(payloads: list[Raw]) -> list[int]:
    return [msgspec.msgpack.decode(raw) for raw in payloads]


def cursor_at(last_id: int, feed_id: int = FEED) -> FeedCursor:
    cursor = FeedCursor()
    assert cursor.accept(DumpEnd(last_id, 0, feed_id)) is Step.REPLACE
    return cursor


def message(*events: int, last_id: int | None = None, feed_id: int = FEED) -> Broadcast:
    return Broadcast(feed_id, max(events) if last_id is None else last_id, [payload(number) for number in events])


class TestCursor:
    def test_what_continues_the_state(self) -> None:
        cursor = cursor_at(3)
        assert numbers(list(cursor.accept_broadcast(message(4, 5)) or ())) == [4, 5]
        assert cursor.last_id == 5

    def test_only_what_is_new(self) -> None:
        cursor = cursor_at(3)
        assert numbers(list(cursor.accept_broadcast(message(2, 3, 4)) or ())) == [4]
        assert cursor.accept_broadcast(message(2, 3)) == []
        assert cursor.last_id == 4

    def test_beats(self) -> None:
        cursor = cursor_at(3)
        assert cursor.accept_broadcast(message(last_id=3)) == []
        assert cursor.accept_broadcast(message(last_id=2)) == []
        assert cursor.accept_broadcast(message(last_id=4)) is None
        assert cursor.last_id == 3

    def test_gap(self) -> None:
        cursor = cursor_at(3)
        assert cursor.accept_broadcast(message(5)) is None
        assert cursor.last_id == 3

    def test_no_state_yet(self) -> None:
        cursor = FeedCursor()
        assert cursor.accept_broadcast(message(1, feed_id=0)) is None
        assert cursor.last_id is None

    def test_another_feed(self) -> None:
        cursor = cursor_at(3)
        assert cursor.accept_broadcast(message(4, feed_id=6)) is None
        assert cursor.last_id == 3

    @given(st.data())
    def test_whatever_the_way_does(self, data: st.DataObject) -> None:
        """Messages are lost, doubled and late; what is missing is asked for: the state is always a whole beginning."""
        said = [
            message(*range(first, last + 1), last_id=last)
            for first, last in data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=20))
            if last >= first - 1
        ]
        cursor, state, published = cursor_at(0), list[int](), 0
        for each in said:
            published = max(published, each.last_id)
            new = cursor.accept_broadcast(each)
            if new is not None:
                state += numbers(list(new))
            elif data.draw(st.booleans()):  # the worker is asked, and has more to say meanwhile or less
                for number in range(1, published + 1):
                    if cursor.accept(FeedEvent(number, payload(number))) is Step.APPLY:
                        state.append(number)
            assert state == list(range(1, (cursor.last_id or 0) + 1))
        if said and cursor.accept_broadcast(message(last_id=published)) is not None:
            assert cursor.last_id == published


class Recorder:
    """As EventPlane: remembers what is said."""

    def __init__(self) -> None:
        self.connected = True
        self.said: list[Broadcast] = []
        self.sizes: list[int] = []
        self.beats: list[Callable[[], bytes]] = []
        self._decode = payload_decoder(Broadcast)

    def publish(self, endpoint: EndpointId, instance_id: int, payload: bytes) -> None:
        self.said.append(self._decode(payload))
        self.sizes.append(len(payload))

    def repeat(self, endpoint: EndpointId, instance_id: int, payload: Callable[[], bytes], interval_s: float) -> Part:
        self.beats.append(payload)
        return _Beat(lambda: self.beats.remove(payload))

    def subscribe(self, endpoint: EndpointId, on_message: OnMessage, on_lost: Callable[[], None]) -> Part:
        raise NotImplementedError

    async def close(self) -> None: ...


class _Beat:
    def __init__(self, close: Callable[[], None]) -> None:
        self.close = close


async def test_what_a_feed_says() -> None:
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    plane = runtime.event_plane = Recorder()
    feed = EventFeed(list)
    feed.publish(1)  # which nobody hears
    await feed.start(runtime.endpoint("test.backend.events"))
    for number in range(2, 400):
        feed.publish(number)
    assert not plane.said  # all of one turn go together
    await asyncio.sleep(0)
    assert [(each.feed_id, each.after, each.last_id) for each in plane.said] == [
        (feed.feed_id, 1, 257),
        (feed.feed_id, 257, 399),
    ]
    assert numbers([raw for each in plane.said for raw in each.payloads]) == list(range(2, 400))

    plane.connected = False
    feed.publish(400)
    await asyncio.sleep(0)
    plane.connected = True
    [beat] = plane.beats
    assert plane._decode(beat()) == Broadcast(feed.feed_id, 400, [])
    feed.publish(401)
    await asyncio.sleep(0)
    assert (plane.said[2].after, plane.said[2].last_id) == (400, 401)

    feed.close()
    assert not plane.beats
    feed.publish(402)
    await asyncio.sleep(0)
    assert len(plane.said) == 3
    await within(runtime.close())


async def test_messages_are_no_larger_than_a_broker_takes() -> None:
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    plane = runtime.event_plane = Recorder()
    feed = EventFeed(list)
    await feed.start(runtime.endpoint("test.backend.events"))
    for _ in range(20):
        feed.publish("x" * 50_000)
    feed.publish("x" * 300_000)
    feed.publish(1)
    await asyncio.sleep(0)
    assert [len(each.payloads) for each in plane.said] == [2] * 10 + [1, 1]
    assert max(plane.sizes[:10]) < 150_000
    feed.close()
    await within(runtime.close())
