"""Serves connections of peers, each in a thread of its own."""

import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable

logger = logging.getLogger(__name__)

CONNECTIONS_MAX = 1024  # of one acceptor at the same time: each peer may keep as many as it has had jobs under way
_PAUSE_S = 0.1  # before the next try, when there was nothing to accept a connection with


class Acceptor:
    """From now on until close()."""

    def __init__(self, listening: socket.socket, serve: Callable[[socket.socket], None], name: str) -> None:
        """`listening` is bound, and this object's own from now on. `serve` blocks until a connection has ended."""
        self.closed = threading.Event()
        self._serve = serve
        self._name = name
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listening = listening
        listening.setblocking(True)
        listening.listen(CONNECTIONS_MAX)
        _acceptors.add(self)
        self._thread = threading.Thread(target=self._accept, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Connections are shut down; their threads may still be at it. Idempotent."""
        self.closed.set()
        shut(self._listening)
        self._thread.join()
        self._listening.close()
        with self._lock:
            for sock in self._sockets:
                shut(sock)

    def close_copies(self) -> None:
        """For a forked child: with them open, peers would not see its parent's end."""
        for sock in (self._listening, *self._sockets):
            sock.close()

    def _accept(self) -> None:
        while not self.closed.is_set():
            try:
                sock, _ = self._listening.accept()
            except OSError as error:
                if not self.closed.wait(_PAUSE_S):  # out of files for a moment
                    logger.warning("%s: a connection cannot be accepted: %s", self._name, error)
                continue
            with self._lock:
                crowded = len(self._sockets) >= CONNECTIONS_MAX
                if not crowded:
                    self._sockets.add(sock)
            if crowded:
                logger.warning("%s: a connection is refused: there are %d already", self._name, CONNECTIONS_MAX)
                sock.close()
            else:
                threading.Thread(target=self._run, args=(sock,), name=f"{self._name}-peer", daemon=True).start()

    def _run(self, sock: socket.socket) -> None:
        try:
            self._serve(sock)
        finally:
            with self._lock:
                self._sockets.discard(sock)
            sock.close()


def shut(sock: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """Whoever waits for it, here or at the other end, sees its end."""
    try:
        sock.shutdown(how)
    except OSError as error:
        logger.debug("a socket was shut already: %s", error)


def _after_fork() -> None:
    for acceptor in tuple(_acceptors):
        acceptor.close_copies()


_acceptors: "weakref.WeakSet[Acceptor]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)
