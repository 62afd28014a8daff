"""Sockets that a process listens on."""

import ipaddress
import socket

from dynamo.errors import ConfigError

PORT_MAX = 0xFFFF
_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; ConfigError says what is wrong with the address."""
    if not 0 <= port <= PORT_MAX:
        raise ConfigError(f"{port} is not a port: it must be between 0 and {PORT_MAX}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)  # asyncio sets TCP_NODELAY only where TCP is named as the protocol
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigError(f"cannot listen on {host}:{port}: {reason or error}") from error
    sock.setblocking(False)
    return sock


def is_loopback(host: str) -> bool:
    """Whether only programs of this host can connect to what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
