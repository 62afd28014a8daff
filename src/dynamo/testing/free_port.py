"""Ports for programs that cannot be told to take any."""

import socket


def free_port() -> int:
    """One of 127.0.0.1 that nobody has at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
