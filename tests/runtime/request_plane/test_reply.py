"""The caller's end of a call, fed by hand."""

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from msgspec import Raw

from dynamo.errors import ConnectionLostError, DeadlineExceededError, RequestCancelledError
from dynamo.runtime.codec import ITEM_OVERHEAD_BYTES, FrameReader, Item, encode_frame
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.reply import WINDOW_BYTES, Reply
from dynamo.runtime.stage import Deliver
from dynamo.testing.stages import Reading, reading
from dynamo.testing.waiting import within

LARGE = bytes(WINDOW_BYTES // 4 - ITEM_OVERHEAD_BYTES)  # two of them are worth a grant


class Port:
    """Writes down what a reply wants of its connection."""

    def __init__(self) -> None:
        self.granted: list[int] = []
        self.stops: list[bool] = []  # whether each of them kills
        self.forgotten = 0

    def grant(self, stream_id: int, size_bytes: int) -> None:
        self.granted.append(size_bytes)

    def stop(self, stream_id: int, *, kill: bool) -> None:
        self.stops.append(kill)

    def forget(self, stream_id: int) -> None:
        self.forgotten += 1

    def soon(self, callback: Callable[[], None]) -> None:
        callback()


class Call:
    """A call that is under way."""

    def __init__(self, context: Context | None = None) -> None:
        self.context = context or Context()
        self.port = Port()
        self.reply = Reply(self.port, 1, self.context)
        self.reply.follow()

    def feed(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.reply.feed(Raw(payload))

    def pushing(self, then: Deliver[bytes]) -> "asyncio.Task[None]":
        return asyncio.create_task(self.reply.push_to(lambda payload: then(bytes(payload))))

    @asynccontextmanager
    async def reading(self, enough: int | None = None) -> AsyncIterator[Reading[bytes]]:
        """Pushes to a reader; what waits has been delivered when the block begins."""

        async def stage(request: None, context: Context, deliver: Deliver[bytes]) -> None:
            await self.reply.push_to(lambda payload: deliver(bytes(payload)))

        async with reading(stage, None, self.context, enough=enough) as reader:
            await asyncio.sleep(0)
            yield reader


def fail(item: bytes) -> bool:
    raise ZeroDivisionError


async def test_waiting_item_does_not_keep_its_frame_in_memory() -> None:
    """A stalled reader gets a small item in each of the large frames that its neighbours share."""
    frames, frame_bytes = 100, 100_000
    frame = encode_frame([Item(1, Raw(b"\x01")), Item(2, Raw(b"\xc6\x00\x01\x86\xa0" + bytes(frame_bytes)))])
    reader, stalled = FrameReader(first_frame_bytes=1 << 20), Reply(Port(), 1, Context())
    tracemalloc.start()
    try:
        for _ in range(frames):
            (mine, _) = reader.feed(bytes(bytearray(frame)))
            assert isinstance(mine, Item)
            stalled.feed(mine.payload)
            del mine, _
        assert len(stalled._items) == frames
        assert tracemalloc.get_traced_memory()[0] < 5 * frame_bytes
    finally:
        tracemalloc.stop()
    assert [bytes(await anext(stalled)) for _ in range(frames)] == [b"\x01"] * frames


async def test_paused_reader_does_not_keep_frames_in_memory_either() -> None:
    call, frame = Call(), b"x" * 1_000_000
    async with call.reading() as reader:
        call.context.pause()
        tracemalloc.start()
        try:
            for _ in range(10):
                call.reply.feed(Raw(memoryview(bytes(bytearray(frame)))[:1]))
            assert tracemalloc.get_traced_memory()[0] < len(frame)
        finally:
            tracemalloc.stop()
        call.context.resume()
        assert reader.items == [b"x"] * 10


class TestPush:
    async def test_what_waited_comes_first_and_in_order(self) -> None:
        call = Call()
        call.feed(b"1", b"2")
        async with call.reading() as reader:
            assert reader.items == [b"1", b"2"]
            call.feed(b"3")
            assert reader.items == [b"1", b"2", b"3"], "it comes at once, and not by another task"
            call.reply.end(None)
            assert await reader.end() == [b"1", b"2", b"3"]
        assert call.port.stops == []
        assert call.port.forgotten == 1

    async def test_call_that_has_ended_already(self) -> None:
        call = Call()
        call.feed(b"1", b"2")
        call.reply.end(ConnectionLostError("gone"))
        async with call.reading() as reader:
            with pytest.raises(ConnectionLostError):
                await reader.end()
            assert reader.items == [b"1", b"2"]

    async def test_error_that_ends_the_call(self) -> None:
        call = Call()
        async with call.reading() as reader:
            call.feed(b"1")
            call.reply.end(ConnectionLostError("gone"))
            with pytest.raises(ConnectionLostError):
                await reader.end()
            assert reader.items == [b"1"]
        assert call.port.stops == []

    @pytest.mark.parametrize("waiting", [0, 5])
    async def test_reader_that_has_enough(self, waiting: int) -> None:
        call = Call()
        items = [b"%d" % number for number in range(5)]
        call.feed(*items[:waiting])
        async with call.reading(enough=2) as reader:
            for item in items[waiting:2]:
                call.feed(item)
            assert await reader.end() == items[:2]
        assert call.port.stops == [True]
        assert call.port.forgotten == 1

    async def test_reader_that_has_enough_of_a_call_that_failed_later(self) -> None:
        call = Call()
        call.feed(b"1", b"2")
        call.reply.end(ConnectionLostError("gone"))
        async with call.reading(enough=1) as reader:
            assert await reader.end() == [b"1"]
        assert call.port.stops == []

    @pytest.mark.parametrize("ended", [False, True])
    async def test_reader_that_fails_while_items_wait(self, ended: bool) -> None:
        call = Call()
        call.feed(b"1", b"2", b"3")
        if ended:
            call.reply.end(ConnectionLostError("gone"))
        seen: list[bytes] = []

        def look_and_fail(item: bytes) -> bool:
            seen.append(item)
            return fail(item)

        pushing = call.pushing(look_and_fail)
        with pytest.raises(ZeroDivisionError):
            await within(pushing)
        assert seen == [b"1"]
        assert not call.reply._items
        assert call.port.stops == ([] if ended else [True])
        assert call.port.forgotten == 1

    async def test_reader_that_fails_on_arrival_does_not_trouble_the_connection(self) -> None:
        call = Call()
        pushing = call.pushing(fail)
        await asyncio.sleep(0)
        call.feed(b"1")
        with pytest.raises(ZeroDivisionError):
            await within(pushing)
        assert call.port.stops == [True]

    async def test_cancelling_the_reader_kills_the_call(self) -> None:
        call = Call()
        async with call.reading() as reader:
            call.feed(b"1")
        assert reader.task.cancelled()
        assert call.port.stops == [True]
        assert call.port.forgotten == 1

    async def test_kill(self) -> None:
        call = Call()
        async with call.reading() as reader:
            call.context.kill()
            with pytest.raises(RequestCancelledError):
                await reader.end()
        assert call.port.stops == [True]

    async def test_kill_by_the_reader_itself(self) -> None:
        call = Call()
        call.feed(b"1", b"2")
        seen: list[bytes] = []

        def leave(item: bytes) -> bool:
            seen.append(item)
            call.context.kill()
            return True

        with pytest.raises(RequestCancelledError):
            await within(call.pushing(leave))
        assert seen == [b"1"]
        assert call.port.stops == [True]

    async def test_stop_leaves_the_call_its_end(self) -> None:
        call = Call()
        async with call.reading() as reader:
            call.context.stop_generating()
            assert call.port.stops == [False]
            call.feed(b"last")
            call.reply.end(None)
            assert await reader.end() == [b"last"]

    async def test_deadline(self) -> None:
        call = Call(Context(deadline_s=time.monotonic() + 0.01))
        async with call.reading() as reader:
            with pytest.raises(DeadlineExceededError):
                await reader.end()
        assert call.port.stops == [True]

    async def test_nothing_of_the_context_is_followed_afterwards(self) -> None:
        call = Call()
        async with call.reading() as reader:
            call.reply.end(None)
            await reader.end()
        assert call.context._listeners == call.context._flow_listeners == []


class TestPause:
    async def test_what_arrives_waits_for_the_resume(self) -> None:
        call = Call()
        async with call.reading() as reader:
            call.feed(b"1")
            call.context.pause()
            call.feed(b"2", b"3")
            assert reader.items == [b"1"]
            call.context.resume()
            assert reader.items == [b"1", b"2", b"3"]
            call.feed(b"4")
            assert reader.items == [b"1", b"2", b"3", b"4"]

    async def test_pause_by_the_reader_itself(self) -> None:
        call = Call()
        call.feed(b"1", b"2", b"3")
        seen: list[bytes] = []

        def one_at_a_time(item: bytes) -> bool:
            seen.append(item)
            call.context.pause()
            return True

        pushing = call.pushing(one_at_a_time)
        await asyncio.sleep(0)
        call.feed(b"4")
        call.reply.end(None)
        for count in (1, 2, 3, 4):
            assert seen == [b"1", b"2", b"3", b"4"][:count]
            call.context.resume()
        await within(pushing)

    async def test_pause_before_the_first_item(self) -> None:
        call = Call()
        call.context.pause()
        call.feed(b"1")
        async with call.reading() as reader:
            assert reader.items == []
            call.context.resume()
            assert reader.items == [b"1"]

    async def test_context_that_was_paused_before_the_call(self) -> None:
        context = Context()
        context.pause()
        call = Call(context)
        async with call.reading() as reader:
            call.feed(b"1")
            assert reader.items == []
            context.resume()
            assert reader.items == [b"1"]

    async def test_end_during_a_pause(self) -> None:
        """The reader gets the rest when it resumes, and then what ended the call."""
        call = Call()
        async with call.reading() as reader:
            call.context.pause()
            call.feed(b"1", b"2")
            call.reply.end(ConnectionLostError("gone"))
            for _ in range(3):
                await asyncio.sleep(0)
            assert reader.items == []
            assert not reader.task.done()
            call.context.resume()
            with pytest.raises(ConnectionLostError):
                await reader.end()
            assert reader.items == [b"1", b"2"]

    async def test_end_during_a_pause_with_nothing_left_to_deliver(self) -> None:
        call = Call()
        async with call.reading() as reader:
            call.context.pause()
            call.reply.end(None)
            assert await reader.end() == []

    async def test_end_during_a_pause_before_anybody_reads(self) -> None:
        call = Call()
        call.context.pause()
        call.feed(b"1")
        call.reply.end(None)
        async with call.reading() as reader:
            assert reader.items == []
            call.context.resume()
            assert await reader.end() == [b"1"]

    @pytest.mark.parametrize("ended", [False, True])
    async def test_kill_during_a_pause(self, ended: bool) -> None:
        call = Call()
        async with call.reading() as reader:
            call.context.pause()
            call.feed(b"1")
            if ended:
                call.reply.end(None)
            call.context.kill()
            with pytest.raises(RequestCancelledError):
                await reader.end()
            assert reader.items == []
        assert call.port.stops == ([] if ended else [True])
        assert call.context._listeners == call.context._flow_listeners == []

    @pytest.mark.parametrize("ended", [False, True])
    async def test_reader_that_leaves_during_a_pause(self, ended: bool) -> None:
        call = Call()
        async with call.reading():
            call.context.pause()
            call.feed(b"1")
            if ended:
                call.reply.end(None)
        assert call.port.stops == ([] if ended else [True])
        assert not call.reply._items
        assert call.context._listeners == call.context._flow_listeners == []

    @pytest.mark.parametrize("ended", [False, True])
    async def test_reader_that_fails_after_a_pause(self, ended: bool) -> None:
        call = Call()
        pushing = call.pushing(fail)
        await asyncio.sleep(0)
        call.context.pause()
        call.feed(b"1", b"2")
        if ended:
            call.reply.end(None)
        call.context.resume()
        with pytest.raises(ZeroDivisionError):
            await within(pushing)
        assert call.port.stops == ([] if ended else [True])


class TestCredit:
    async def test_is_granted_for_what_was_delivered(self) -> None:
        call = Call()
        async with call.reading():
            call.feed(LARGE)
            assert call.port.granted == []
            call.feed(LARGE)
            assert call.port.granted == [WINDOW_BYTES // 2]
            call.feed(LARGE, LARGE)
            assert call.port.granted == [WINDOW_BYTES // 2] * 2

    async def test_waits_with_the_items(self) -> None:
        call = Call()
        async with call.reading():
            call.context.pause()
            call.feed(LARGE, LARGE)
            assert call.port.granted == []
            call.context.resume()
            assert call.port.granted == [WINDOW_BYTES // 2]

    @pytest.mark.parametrize("last", [lambda item: False, fail])
    async def test_is_none_for_the_item_that_ends_the_reading(self, last: Deliver[bytes]) -> None:
        call = Call()
        call.feed(LARGE, LARGE)
        seen: list[bytes] = []

        def take(item: bytes) -> bool:
            seen.append(item)
            return len(seen) < 2 or last(item)

        pushing = call.pushing(take)
        await asyncio.wait([pushing], timeout=10)
        assert pushing.done()
        assert (pushing.exception() is None) == (last is not fail)
        assert call.port.granted == []

    async def test_is_none_once_the_call_has_ended(self) -> None:
        call = Call()
        call.feed(LARGE, LARGE)
        call.reply.end(None)
        async with call.reading() as reader:
            assert len(await reader.end()) == 2
        assert call.port.granted == []
