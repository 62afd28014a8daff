"""Ports for programs that cannot be told to take any."""

import contextlib
import random
import socket

_KEPT = (10_000, 32_000)  # below the range from which the system gives ports to whoever asks for any


def free_port() -> int:
    """One of 127.0.0.1 that nobody has at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def kept_ports(count: int = 1) -> int:
    """The first of so many in a row that nobody has, and that nobody gets by chance.

    For who takes them later, or again, or the next ones too.
    """
    while True:
        first = random.randrange(*_KEPT)  # noqa: S311 - no secret
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
