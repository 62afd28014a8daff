"""Accepting connections when the process has no file descriptors left."""

import errno
import os
import queue
import socket
import threading
import time

import pytest

from dynamo.transfer import acceptor
from dynamo.transfer.acceptor import Acceptor


class Failing(socket.socket):
    """Has nothing to accept connections with until the third try."""

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.failures = 0

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        if self.failures < 2:
            self.failures += 1
            raise OSError(errno.EMFILE, "Too many open files")
        connection, address = super().accept()
        return connection, address


def test_when_files_are_out_it_is_tried_again_after_a_pause() -> None:
    listening = Failing()
    listening.bind(("127.0.0.1", 0))
    served = threading.Event()
    started_s = time.monotonic()
    serving = Acceptor(listening, lambda _: served.set(), "test")
    try:
        with socket.create_connection(listening.getsockname(), 5):
            assert served.wait(5)
        assert time.monotonic() - started_s >= 2 * acceptor._PAUSE_S
    finally:
        serving.close()


def test_connections_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "CONNECTIONS_MAX", 1)
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    serving = Acceptor(listening, lambda sock: sock.sendall(sock.recv(1) + sock.recv(1)), "test")
    try:
        with socket.create_connection(address, 5) as first:
            first.sendall(b"a")
            with socket.create_connection(address, 5) as second:
                assert second.recv(1) == b""
            first.sendall(b"b")
            assert first.recv(2) == b"ab"
    finally:
        serving.close()


@pytest.mark.filterwarnings("ignore:This process")  # is multi-threaded
def test_a_forked_child_has_none_of_the_connections() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    served: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()

    def serve(sock: socket.socket) -> None:
        served.put(sock)
        sock.recv(1)

    serving = Acceptor(listening, serve, "test")
    try:
        with socket.create_connection(listening.getsockname(), 5) as connection:
            accepted = served.get(timeout=5)
            child = os.fork()
            if not child:
                os._exit(0 if (listening.fileno(), accepted.fileno()) == (-1, -1) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            connection.sendall(b"x")
            assert connection.recv(1) == b""  # it was served to its end
    finally:
        serving.close()
