"""The ports at which the NIXL connectors of many vLLMs on one host introduce themselves to each other."""

import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from dynamo.errors import ConfigError

_HOST = "VLLM_NIXL_SIDE_CHANNEL_HOST"
_PORT = "VLLM_NIXL_SIDE_CHANNEL_PORT"
_ATTEMPTS = 100


class SideChannel:
    """Ports that nobody else gets before vLLM listens there, which it does a minute later and in another process.

    Each is held by a socket that is bound but does not listen: the kernel then gives the port to nobody who asks for
    any port, and to no other SideChannel, but lets a socket with SO_REUSEADDR, as vLLM's, listen there beside it.
    """

    def __init__(self, host: str, count: int) -> None:
        """Takes `count` ports in a row at `host`, an address of this machine. Raises ConfigError when that fails."""
        try:
            self._sockets = _consecutive(host, count)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise ConfigError(f"cannot take a port on {host}: {reason or error}") from error
        self.host: str = self._sockets[0].getsockname()[0]
        self.port: int = self._sockets[0].getsockname()[1]  # the first one

    def close(self) -> None:
        """Gives the ports back. Idempotent."""
        for each in self._sockets:
            each.close()


@contextmanager
def side_channel(environ: MutableMapping[str, str], host: str, ranks: int) -> Iterator[None]:
    """Tells vLLM, by `environ`, where to listen: on `host`, at a port for each data-parallel rank.

    What the user has set stays; with a port of theirs there is nothing to hold.
    """
    if _PORT in environ:
        environ.setdefault(_HOST, host)
        yield
        return
    channel = SideChannel(environ.get(_HOST, host), ranks)
    try:
        environ.setdefault(_HOST, channel.host)
        environ[_PORT] = str(channel.port)
        yield
    finally:
        channel.close()


def _consecutive(host: str, count: int) -> list[socket.socket]:
    for attempt in range(_ATTEMPTS):
        taken = [_hold(host, 0)]
        try:
            first = taken[0].getsockname()[1]
            for port in range(first + 1, first + count):
                taken.append(_hold(host, port))  # noqa: PERF401 - those before one that fails are to be closed
        except (OSError, OverflowError):  # the next one is somebody's, or beyond the last
            for each in taken:
                each.close()
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return taken
    raise AssertionError("unreachable")


def _hold(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.bind(address)  # without SO_REUSEADDR: not where another one holds or listens
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except BaseException:
        sock.close()
        raise
    return sock
