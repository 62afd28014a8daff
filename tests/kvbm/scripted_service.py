"""The service's end of the socket, said word for word by a test."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from dynamo.kvbm.frames import frame, request_reader
from dynamo.protocols.kvbm import KVBM_VERSION, Attach, Attached, PoolOptions, PoolSpec, Reply, Request

SLOT_BYTES = 4096
SPEC = PoolSpec(namespace=b"n" * 16, description="m", rank_bytes=1000, block_tokens=16)


def attach(owner: str = "engine", rank: int | None = None, *, host_bytes: int = 64 * SLOT_BYTES) -> Attach:
    return Attach(version=KVBM_VERSION, owner=owner, pool=SPEC, options=PoolOptions(host_bytes=host_bytes), rank=rank)


ATTACHED = Attached(slots=64, slot_bytes=SLOT_BYTES, memory_bytes=64 * SLOT_BYTES)


class Connection:
    """One client, from the service's side. What it does not do within 5 s is an error."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(5.0)
        self.socket = sock
        self._reader = request_reader()
        self._requests: list[Request] = []

    def heard(self) -> Request:
        while not self._requests:
            data = self.socket.recv(1 << 20)
            assert data, "the client has closed the connection"
            self._requests += self._reader.feed(data)
        return self._requests.pop(0)

    def say(self, reply: Reply, *fds: int) -> None:
        socket.send_fds(self.socket, [frame(reply)], fds)


class ScriptedService:
    def __init__(self, path: Path) -> None:
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen(4)
        self._listening.settimeout(5.0)
        self._connections: list[Connection] = []

    def accept(self) -> Connection:
        connection = Connection(self._listening.accept()[0])
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._connections:
            connection.socket.close()
        self._listening.close()


@contextlib.contextmanager
def scripted_service(path: Path) -> Iterator[ScriptedService]:
    service = ScriptedService(path)
    try:
        yield service
    finally:
        service.close()
