"""A feed's subscribers: their place in it, and what they get over a request plane."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from dynamo.runtime import Client, DistributedRuntime
from dynamo.runtime.client import ReplyStream
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.event_feed import (
    DumpEnd,
    DumpPart,
    EventFeed,
    FeedCursor,
    FeedEvent,
    FeedItem,
    Resumed,
    Step,
    Subscribe,
)
from dynamo.runtime.instance import EndpointId
from dynamo.runtime.request_plane.reply import WINDOW_BYTES
from dynamo.testing import eventually, within

NewRuntime = Callable[[], DistributedRuntime]
ENDPOINT = "test.backend.events"
LARGE = "x" * 20_000


def event(number: int) -> FeedEvent:
    return FeedEvent(number, Raw(encode_payload(number)))


def part(number: int, of: int = 7) -> DumpPart:
    return DumpPart(of, number, Raw(encode_payload(number)))


def cursor_at(last_id: int) -> FeedCursor:
    cursor = FeedCursor()
    assert cursor.accept(DumpEnd(last_id, 0)) is Step.REPLACE
    return cursor


class TestCursor:
    def test_event_without_a_state_to_continue(self) -> None:
        cursor = FeedCursor()
        assert cursor.accept(event(1)) is Step.GAP
        assert cursor.last_id is None

    def test_dump_and_what_follows_it(self) -> None:
        cursor = FeedCursor()
        assert [cursor.accept(part(number)) for number in range(3)] == [Step.FIRST_PART, Step.PART, Step.PART]
        assert cursor.last_id is None
        assert cursor.accept(DumpEnd(7, 3)) is Step.REPLACE
        assert cursor.accept(event(8)) is Step.APPLY
        assert cursor.last_id == 8

    @pytest.mark.parametrize(
        ("number", "step", "last_id"),
        [(6, Step.NOTHING, 7), (7, Step.NOTHING, 7), (8, Step.APPLY, 8), (9, Step.GAP, 7), (1 << 63, Step.GAP, 7)],
    )
    def test_numbers_have_no_gaps(self, number: int, step: Step, last_id: int) -> None:
        cursor = cursor_at(7)
        assert cursor.accept(event(number)) is step
        assert cursor.last_id == last_id

    @pytest.mark.parametrize(("number", "step"), [(6, Step.GAP), (7, Step.RESUMED), (8, Step.GAP)])
    def test_stream_that_goes_on(self, number: int, step: Step) -> None:
        cursor = cursor_at(7)
        assert cursor.accept(Resumed(number)) is step
        assert cursor.last_id == 7
        assert FeedCursor().accept(Resumed(number)) is Step.GAP

    def test_dump_that_is_behind_replaces_all_the_same(self) -> None:
        """The publisher knows better what there is, and counts anew after that."""
        cursor = cursor_at(100)
        assert cursor.accept(DumpEnd(3, 0)) is Step.REPLACE
        assert cursor.accept(event(4)) is Step.APPLY

    @pytest.mark.parametrize(
        "items",
        [
            [part(1)],
            [part(0), part(2)],
            [part(0), part(1, of=8)],
            [part(0), DumpEnd(7, 2)],
            [part(0), DumpEnd(8, 1)],
            [DumpEnd(7, 1)],
        ],
    )
    def test_incomplete_dump(self, items: list[FeedItem]) -> None:
        cursor = cursor_at(5)
        *before, last = [cursor.accept(item) for item in items]
        assert Step.GAP not in before
        assert last is Step.GAP
        assert cursor.last_id == 5

    def test_part_that_comes_twice(self) -> None:
        cursor = FeedCursor()
        steps = [cursor.accept(item) for item in (part(0), part(1), part(1), DumpEnd(7, 2))]
        assert steps == [Step.FIRST_PART, Step.PART, Step.NOTHING, Step.REPLACE]

    @pytest.mark.parametrize("second", [7, 9])
    def test_dump_that_begins_anew(self, second: int) -> None:
        cursor = FeedCursor()
        items = (part(0), part(1), part(0, of=second), part(1, of=second), DumpEnd(second, 2))
        assert [cursor.accept(item) for item in items] == [Step.FIRST_PART, Step.PART] * 2 + [Step.REPLACE]

    def test_dump_that_the_connection_did_not_survive(self) -> None:
        cursor = FeedCursor()
        cursor.accept(part(0))
        cursor.disconnected()
        assert cursor.accept(part(1)) is Step.GAP
        cursor.disconnected()
        assert [cursor.accept(item) for item in (part(0, of=9), DumpEnd(9, 1))] == [Step.FIRST_PART, Step.REPLACE]

    def test_events_while_a_dump_is_under_way(self) -> None:
        """They continue the former state; of the new one they are part already."""
        cursor = cursor_at(5)
        assert [cursor.accept(item) for item in (part(0), event(6), part(1))] == [
            Step.FIRST_PART,
            Step.APPLY,
            Step.PART,
        ]
        assert cursor.accept(DumpEnd(7, 2)) is Step.REPLACE
        assert cursor.accept(event(7)) is Step.NOTHING

    def test_dump_without_end(self) -> None:
        cursor = FeedCursor(dump_bytes_max=2)
        assert [cursor.accept(part(number)) for number in range(3)] == [Step.FIRST_PART, Step.PART, Step.TOO_LARGE]
        cursor.disconnected()
        assert cursor.accept(part(0)) is Step.FIRST_PART


class Numbers:
    """The state is the list of all numbers published, its dump in parts of three."""

    def __init__(self, **bounds: int) -> None:
        self.state: list[Any] = []
        self.feed = EventFeed(self.dump, **bounds)
        self.dumps = 0

    def dump(self) -> Iterable[list[Any]]:
        self.dumps += 1
        snapshot = list(self.state)
        return (snapshot[i : i + 3] for i in range(0, len(snapshot), 3))

    def publish(self, *numbers: Any) -> None:
        for number in numbers:
            self.state.append(number)
            self.feed.publish(number)


class Subscriber:
    """Keeps a copy of the state."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.cursor = FeedCursor()
        self.state: list[Any] = []
        self._dumped: list[Any] = []
        self.replaced = 0

    @asynccontextmanager
    async def subscribed(self) -> AsyncIterator[ReplyStream[FeedItem]]:
        request = Subscribe(self.cursor.last_id, self.cursor.feed_id)
        stream = await self._client.direct(request, self._client.instance_ids()[0], annotated=False)
        try:
            yield stream
        finally:
            self.cursor.disconnected()
            await stream.aclose()

    def take(self, item: FeedItem) -> None:
        step = self.cursor.accept(item)
        assert step is not Step.GAP
        if step is Step.APPLY:
            assert isinstance(item, FeedEvent)
            self.state.append(msgspec.msgpack.decode(item.payload))
        elif step in (Step.FIRST_PART, Step.PART):
            assert isinstance(item, DumpPart)
            former = [] if step is Step.FIRST_PART else self._dumped
            self._dumped = former + msgspec.msgpack.decode(item.payload)
        elif step is Step.REPLACE:
            self.replaced += 1
            self.state, self._dumped = self._dumped, []

    async def read_to(self, stream: ReplyStream[FeedItem], last_id: int) -> None:
        while self.cursor.last_id != last_id:
            self.take(await within(anext(stream)))


@pytest.fixture
async def client(new_runtime: NewRuntime) -> Client:
    return await new_runtime().endpoint(ENDPOINT).client(response_type=FeedItem)


@pytest.fixture
def worker(new_runtime: NewRuntime) -> DistributedRuntime:
    return new_runtime()


class TestFeed:
    @pytest.fixture
    async def numbers(self, worker: DistributedRuntime, client: Client) -> Numbers:
        return await self.served(worker, client, Numbers(events_max=5))

    async def served(self, worker: DistributedRuntime, client: Client, numbers: Numbers) -> Numbers:
        await numbers.feed.start(worker.endpoint(ENDPOINT))
        await within(client.wait_for_instances())
        return numbers

    async def test_dump_at_first_and_events_in_order_after_it(self, numbers: Numbers, client: Client) -> None:
        numbers.publish(*range(8))
        subscriber = Subscriber(client)
        async with subscriber.subscribed() as stream:
            await subscriber.read_to(stream, 8)
            for number in range(8, 100):
                numbers.publish(number)
                await subscriber.read_to(stream, number + 1)
        assert subscriber.state == list(range(100))
        assert subscriber.replaced == 1

    async def test_nothing_yet(self, numbers: Numbers, client: Client) -> None:
        subscriber = Subscriber(client)
        async with subscriber.subscribed() as stream:
            await subscriber.read_to(stream, 0)
            numbers.publish(1)
            await subscriber.read_to(stream, 1)
        assert subscriber.state == [1]

    @pytest.mark.parametrize(("missed", "replaced"), [(0, 1), (1, 1), (5, 1), (6, 2)])
    async def test_after_a_reconnection_only_what_is_missing(
        self, numbers: Numbers, client: Client, missed: int, replaced: int
    ) -> None:
        subscriber = Subscriber(client)
        async with subscriber.subscribed() as stream:
            numbers.publish(*range(3))
            await subscriber.read_to(stream, 3)
        numbers.publish(*range(3, 3 + missed))
        async with subscriber.subscribed() as stream:
            await subscriber.read_to(stream, 3 + missed)
            numbers.publish("last")
            await subscriber.read_to(stream, 4 + missed)
        assert subscriber.state == numbers.state
        assert subscriber.replaced == replaced

    async def test_who_comes_back_hears_that_nothing_has_happened(self, numbers: Numbers, client: Client) -> None:
        numbers.publish(1)
        subscriber = Subscriber(client)
        async with subscriber.subscribed() as stream:
            await subscriber.read_to(stream, 1)
        async with subscriber.subscribed() as stream:
            assert await within(anext(stream)) == Resumed(1, numbers.feed.feed_id)

    async def test_subscriber_that_knows_of_a_later_event_than_there_is(self, numbers: Numbers, client: Client) -> None:
        """It took another feed for this one, or this one has lost its memory."""
        numbers.publish(1, 2)
        subscriber = Subscriber(client)
        subscriber.cursor.last_id = 50
        async with subscriber.subscribed() as stream:
            await subscriber.read_to(stream, 2)
        assert subscriber.state == [1, 2]

    async def test_subscriber_that_knows_another_feed(
        self, numbers: Numbers, client: Client, worker: DistributedRuntime
    ) -> None:
        """Which was served before this one, and had come as far."""
        numbers.publish(1, 2)
        subscriber = Subscriber(client)
        async with subscriber.subscribed() as stream:
            await subscriber.read_to(stream, 2)
        await worker.stop_serving(EndpointId.parse(ENDPOINT))
        await eventually(lambda: not client.instance_ids())
        another = await self.served(worker, client, Numbers())
        another.publish(3, 4, 5)
        async with subscriber.subscribed() as stream:
            await subscriber.read_to(stream, 3)
        assert subscriber.state == [3, 4, 5]
        numbers.feed.close()

    async def test_what_is_published_while_a_dump_is_under_way(self, numbers: Numbers, client: Client) -> None:
        """Is neither lost nor doubled: the dump is of one moment."""
        numbers.publish(*[LARGE] * 60)  # more than the window lets through at once
        subscriber = Subscriber(client)
        async with subscriber.subscribed() as stream:
            subscriber.take(await within(anext(stream)))
            numbers.publish(1, 2, 3)
            await subscriber.read_to(stream, 63)
        assert subscriber.state == numbers.state
        assert subscriber.replaced == 1

    async def test_subscriber_that_does_not_read(self, worker: DistributedRuntime, client: Client) -> None:
        """Holds up neither the publisher nor the others, costs no memory, and is cut over to a dump later."""
        numbers = await self.served(worker, client, Numbers(bytes_max=4 * len(LARGE)))
        slow, fast = Subscriber(client), Subscriber(client)
        total = 3 * WINDOW_BYTES // len(LARGE)
        async with slow.subscribed() as unread, fast.subscribed() as stream:
            await slow.read_to(unread, 0)
            for count in range(1, total + 1):
                numbers.publish(LARGE)
                await fast.read_to(stream, count)
            assert len(numbers.feed._kept) == 3  # the fourth does not fit, with its number
            assert numbers.feed._kept_bytes <= 4 * len(LARGE)
            await slow.read_to(unread, total)
        assert (fast.replaced, slow.replaced) == (1, 2)
        assert slow.state == fast.state == numbers.state

    async def test_event_that_is_too_large_to_be_kept(self, worker: DistributedRuntime, client: Client) -> None:
        numbers = await self.served(worker, client, Numbers(bytes_max=100))
        subscriber = Subscriber(client)
        async with subscriber.subscribed() as stream:
            await subscriber.read_to(stream, 0)
            numbers.publish(LARGE, 1)
            await subscriber.read_to(stream, 2)
        assert subscriber.state == [LARGE, 1]
        assert subscriber.replaced == 2

    async def test_events_are_encoded_once_for_all(self, numbers: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
        numbers.publish(17)
        streams = [numbers.feed.serve(Subscribe(0)) for _ in range(3)]
        for stream in streams:
            assert bytes(await within(anext(stream))) == encode_payload(Resumed(0, numbers.feed.feed_id))
        monkeypatch.setattr("dynamo.runtime.event_feed.encode_payload", None)
        items = [bytes(await within(anext(stream))) for stream in streams]
        assert items == [encode_payload(FeedEvent(1, Raw(encode_payload(17))))] * 3

    async def test_event_that_cannot_be_encoded_takes_no_number(self, numbers: Numbers, client: Client) -> None:
        with pytest.raises(TypeError):
            numbers.feed.publish(object())
        assert numbers.feed.last_id == 0
        assert numbers.feed.publish(1) == 1

    async def test_shutdown_ends_the_streams(
        self, numbers: Numbers, client: Client, worker: DistributedRuntime
    ) -> None:
        """Else the runtime would wait for them until its deadline."""
        subscriber = Subscriber(client)
        async with subscriber.subscribed() as stream:
            await subscriber.read_to(stream, 0)
            closing = asyncio.create_task(worker.close())
            with pytest.raises(StopAsyncIteration):
                await within(anext(stream))
        await within(closing, worker.config.shutdown_timeout_s / 2)

    async def test_those_who_leave_are_forgotten(self, numbers: Numbers) -> None:
        decode = payload_decoder(FeedItem)
        stream: Any = numbers.feed.serve(Subscribe())
        assert decode(await anext(stream)) == DumpEnd(0, 0, numbers.feed.feed_id)
        waiting = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        assert len(numbers.feed._waiters) == 1
        waiting.cancel()
        await asyncio.wait([waiting])
        assert not numbers.feed._waiters
        numbers.publish(1)

    async def test_closing_ends_its_task(self, worker: DistributedRuntime) -> None:
        def tasks() -> list[str]:
            return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "feed-test.backend.more"]

        feed = EventFeed(list)
        await feed.start(worker.endpoint("test.backend.more"))
        assert len(tasks()) == 1
        feed.close()
        feed.close()
        await eventually(lambda: not tasks())
