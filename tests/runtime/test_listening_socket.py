import socket

import pytest

from dynamo.errors import ConfigError
from dynamo.runtime.listening_socket import bind, is_loopback


def test_any_free_port() -> None:
    with bind("127.0.0.1", 0) as sock:
        assert sock.getsockname()[1] > 0
        assert not sock.getblocking()
        assert sock.proto == socket.IPPROTO_TCP  # else asyncio leaves Nagle's algorithm on, for 40 ms stalls
        socket.create_connection(sock.getsockname()).close()


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 65536, "65536 is not a port"),
        ("127.0.0.1", -1, "-1 is not a port"),
        ("no such host", 0, "no such host:0"),
        ("a" * 300, 0, "cannot listen"),
        ("192.0.2.1", 0, "192.0.2.1:0"),  # nobody's address
    ],
)
def test_impossible_addresses(host: str, port: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bind(host, port)


def test_port_in_use() -> None:
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: .*in use"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("", False), ("example.org", False)],
)  # fmt: skip
def test_who_can_connect(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
