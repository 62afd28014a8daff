"""A call at its callee, beside what the suite sees from the caller's end."""

import asyncio
from collections.abc import AsyncGenerator

import msgspec

from dynamo.errors import DeadlineExceededError
from dynamo.runtime.codec import End, Message
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.call import ServedCall
from dynamo.testing import within
from dynamo.testing.request_plane.raw_peer import call_message


class Port:
    def __init__(self) -> None:
        self.writable = asyncio.Event()
        self.posted: list[Message] = []
        self.done = asyncio.Event()

    def post(self, message: Message, size_bytes: int = 0) -> None:
        self.posted.append(message)


async def never(payload: msgspec.Raw, context: Context) -> AsyncGenerator[bytes, None]:
    raise AssertionError("it was killed before it began")
    yield b""


async def test_call_that_is_killed_before_it_has_begun() -> None:
    """As by a deadline that has passed already: its caller waits for the end all the same."""
    port = Port()
    call = ServedCall(port, call_message(1, "never"), lambda _: port.done.set())
    call.start(never, call_message(1, "").payload)
    call.kill(DeadlineExceededError("too late"))
    await within(port.done.wait())
    (end,) = port.posted
    assert isinstance(end, End)
    assert end.error is not None
    assert end.error.code == DeadlineExceededError.code
