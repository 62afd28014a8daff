"""Sockets that become connections: their descriptors are closed once."""

import asyncio
import gc
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
import uvloop

from dynamo.runtime.connected_socket import adopt, adopted_streams
from dynamo.testing.waiting import within

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


class Greeting(asyncio.Protocol):
    """Speaks first, as callers do."""

    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(b"hello")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


def run(new_loop: NewLoop, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


@LOOPS
def test_the_other_end_is_gone_before_it_begins(new_loop: NewLoop) -> None:
    """The descriptor's next owner keeps it."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        number = ours.fileno()
        theirs.close()
        _, protocol = await adopt(ours, Greeting)
        await within(protocol.lost)
        await asyncio.sleep(0)  # asyncio closes it after it has said so
        other = os.open(os.devnull, os.O_RDONLY)
        assert other == number, "the kernel gives the lowest number that is free"
        del ours, protocol, _
        gc.collect()
        os.close(other)  # which somebody else must not have done

    run(new_loop, main)


@LOOPS
def test_streams(new_loop: NewLoop) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await adopted_streams(ours)
            writer.write(b"question")
            assert theirs.recv(100) == b"question"
            theirs.send(b"answer")
            assert await within(reader.readexactly(6)) == b"answer"
            writer.close()
            await within(writer.wait_closed())
            assert theirs.recv(100) == b""

    run(new_loop, main)


@LOOPS
def test_what_cannot_be_adopted_is_closed(new_loop: NewLoop) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
        with theirs:
            with pytest.raises(ValueError, match="Stream"):
                await adopt(ours, Greeting)
            assert ours.fileno() == -1

    run(new_loop, main)
