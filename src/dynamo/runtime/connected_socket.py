"""Sockets that are connected already, made into connections of the event loop."""

import asyncio
import socket
from collections.abc import Callable
from typing import TypeVar

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)


async def adopt(sock: socket.socket, make_protocol: Callable[[], ProtocolT]) -> tuple[asyncio.Transport, ProtocolT]:
    """A stream socket's connection, which owns it from now on; it is closed when this fails.

    Not by create_unix_connection(sock=…): uvloop's has the socket only once the protocol has begun. Where the other end
    goes away in between, it closes the descriptor and forgets that it did. The socket closes it again later, when that
    number may be somebody else's connection.
    """
    try:
        return await asyncio.get_running_loop().connect_accepted_socket(make_protocol, sock)
    except BaseException:
        sock.close()
        raise


async def adopted_streams(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The same, as asyncio's streams."""
    reader = asyncio.StreamReader()
    transport, protocol = await adopt(sock, lambda: asyncio.StreamReaderProtocol(reader))
    return reader, asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
