"""The request plane over TCP; processes of one host use an abstract Unix socket instead.

Abstract sockets (Linux) have no file that a crash could leave behind. Both kinds of socket can be reached by any user
of the host, so a caller must show the secret that stands in the instance's discovery entry, or prove the deployment's:
see handshake.py. With TLS there is no Unix socket.
"""

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from dynamo.errors import UnreachableError
from dynamo.runtime.acceptor import Acceptor
from dynamo.runtime.connected_socket import adopt
from dynamo.runtime.credentials import NO_CREDENTIALS, Credentials
from dynamo.runtime.listening_socket import bind, is_loopback
from dynamo.runtime.request_plane.base import Address
from dynamo.runtime.request_plane.call import Dispatcher
from dynamo.runtime.request_plane.caller import CallerConnection
from dynamo.runtime.request_plane.handshake import caller_handshake
from dynamo.runtime.request_plane.listener import ConnectionListener

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
_BACKLOG = 1024
_ELSEWHERE = {  # an address for documentation, which nobody has
    "0.0.0.0": (socket.AF_INET, "192.0.2.1", "127.0.0.1"),  # noqa: S104
    "::": (socket.AF_INET6, "2001:db8::1", "::1"),
}


class TcpPlane:
    """Listens on `host` (an ephemeral port unless `port` is given) and connects to any Address with a socket in it."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        advertised: tuple[str, int] | None = None,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        """`advertised`: the host and port that callers are told, and no Unix socket, which would lead around them."""
        self._host = host
        self._port = port
        self._advertised = advertised
        self._credentials = credentials

    async def listen(self, dispatch: Dispatcher) -> ConnectionListener:
        """Raises ConfigError when the port cannot be bound."""
        if self._credentials == NO_CREDENTIALS and not is_loopback(self._host):
            _warn_of_open_door(self._host)
        listener = ConnectionListener(dispatch, secrets.token_hex(16), self._credentials)
        sock = bind(self._host, self._port)
        _detect_dead_peer(sock)
        tls = self._credentials.tls
        listener.on_stop(Acceptor(sock, listener.accept, tls.server if tls is not None else None).stop)
        host, port = self._advertised or (reachable(self._host), sock.getsockname()[1])
        listener.address = msgspec.structs.replace(listener.address, tcp_host=host, tcp_port=port, tls=tls is not None)
        if sys.platform == "linux" and self._advertised is None and tls is None:  # there is one way in, for all
            with contextlib.suppress(OSError):  # some sandboxes forbid it: TCP still works
                _listen_unix(listener)
        return listener

    async def connect(self, address: Address) -> CallerConnection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await _introduced(await self._connect(address))
        except (OSError, TimeoutError, ValueError, UnreachableError) as error:  # ValueError: what cannot be a name
            where, reason = f"{address.tcp_host}:{address.tcp_port}", str(error) or "timed out"
            raise UnreachableError(f"cannot connect to the worker at {where}: {reason}") from error

    async def _connect(self, address: Address) -> CallerConnection:
        loop = asyncio.get_running_loop()

        def make() -> CallerConnection:
            return CallerConnection(caller_handshake(address.secret, self._credentials))

        tls = self._credentials.tls
        if address.tls != (tls is not None):
            raise UnreachableError("only one of the two sides speaks TLS: all processes need --request-plane-tls-cert")
        if address.unix is not None and tls is None and sys.platform == "linux" and address.host_id == host_id():
            with contextlib.suppress(OSError, ValueError):
                return await _connect_unix(address.unix, make)
        if address.tcp_host is None or address.tcp_port is None:
            raise UnreachableError("the worker does not listen on a socket")
        _, connection = await loop.create_connection(
            make,
            address.tcp_host,
            address.tcp_port,
            ssl=tls.client if tls is not None else None,
            server_hostname="" if tls is not None else None,
        )
        if (connected := connection.raw_socket()) is not None:
            _detect_dead_peer(connected)
        return connection


@functools.cache
def host_id() -> str:
    """Names this boot of this network namespace: equal for processes that can share an abstract Unix socket."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}"


async def _connect_unix(name: str, make: Callable[[], CallerConnection]) -> CallerConnection:
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        await loop.sock_connect(sock, f"\0{name}")
    except BaseException:
        sock.close()
        raise
    _, connection = await adopt(sock, make)
    return connection


async def _introduced(connection: CallerConnection) -> CallerConnection:
    try:
        await connection.introduce()
    except BaseException:
        connection.hang_up()
        raise
    return connection


@functools.cache  # once: many a process listens more than once
def _warn_of_open_door(host: str) -> None:
    logger.warning(
        "other hosts can connect to %s, and who reads the traffic or discovery can make calls: "
        "--request-plane-secret-file keeps strangers out",
        host,
    )


def _listen_unix(listener: ConnectionListener) -> None:
    name = f"dynamo-{secrets.token_hex(16)}"
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        sock.bind(f"\0{name}")
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    listener.on_stop(Acceptor(sock, listener.accept).stop)
    listener.address = msgspec.structs.replace(listener.address, unix=name, host_id=host_id())


def reachable(host: str) -> str:
    """What to tell others when listening on every interface: the address by which this host reaches others.

    Not what its name resolves to, which many a distribution has set to 127.0.1.1.
    """
    if host not in _ELSEWHERE:
        return host
    family, elsewhere, loopback = _ELSEWHERE[host]
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((elsewhere, 9))  # sends nothing: it only picks a route
        except OSError:
            return loopback  # there is no way out, nor in
        address: str = sock.getsockname()[0]
        return address


def _detect_dead_peer(sock: socket.socket) -> None:
    """Lets the kernel find out within half a minute that a host has vanished without a word.

    What a listening socket accepts inherits this.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
