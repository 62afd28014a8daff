"""A peer that speaks the protocol byte by byte, or something else altogether."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from msgspec import Raw

from dynamo.runtime.codec import PROTOCOL_VERSION, Call, FrameReader, Hello, Message, encode_frame, encode_payload
from dynamo.runtime.request_plane.base import Address
from dynamo.runtime.request_plane.reply import WINDOW_BYTES
from dynamo.testing.waiting import within


class RawPeer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._frames = FrameReader()

    def send(self, *messages: Message) -> None:
        """One frame."""
        self.writer.write(encode_frame(list(messages)))

    def greet(self, address: Address) -> None:
        self.send(Hello(PROTOCOL_VERSION, address.secret))

    async def frame(self) -> Sequence[Message]:
        """The messages of the next frame; asyncio.IncompleteReadError at the end of the connection."""
        head = await within(self.reader.readexactly(4))
        return self._frames.feed(head + await within(self.reader.readexactly(int.from_bytes(head, "big"))))

    async def rest(self) -> bytes:
        """All bytes until the other side closes."""
        return await within(self.reader.read())


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[RawPeer]:
    reader, writer = await asyncio.open_connection(address.tcp_host, address.tcp_port)
    try:
        yield RawPeer(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await within(writer.wait_closed())


@asynccontextmanager
async def listening(serve: Callable[[RawPeer], Awaitable[None]]) -> AsyncIterator[Address]:
    """A listener that answers each connection with `serve`; they must have ended by the end of the block."""
    serving: list[asyncio.Task[None]] = []

    async def answer(peer: RawPeer) -> None:
        try:
            await serve(peer)
        finally:
            peer.writer.close()
            with suppress(ConnectionError):
                await within(peer.writer.wait_closed())

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.create_task(answer(RawPeer(reader, writer))))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield Address(tcp_host="127.0.0.1", tcp_port=server.sockets[0].getsockname()[1])
        await within(asyncio.gather(*serving))


def call_message(stream_id: int, endpoint: str, request: object = None) -> Call:
    return Call(stream_id, endpoint, f"raw-{stream_id}", WINDOW_BYTES, None, None, {}, Raw(encode_payload(request)))
