"""The connection with one peer, which threads use by turns: in the order in which they came, unlike with a Lock."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TICK_S = 0.1  # how long a thread may wait before it looks whether it is still wanted


class Way:
    def __init__(self) -> None:
        self.user: object = None  # whose connection it is; for who has the turn
        self._condition = threading.Condition()
        self._queue: deque[object] = deque()  # the first has the turn

    @contextmanager
    def turn(self, check: Callable[[], None]) -> Iterator[None]:
        """Waits for it. `check` may raise what ends the wait."""
        ticket = object()
        with self._condition:
            self._queue.append(ticket)
            self._condition.notify_all()
        try:
            with self._condition:
                while self._queue[0] is not ticket:
                    if not self._condition.wait(_TICK_S):
                        check()
            yield
        finally:
            with self._condition:
                self._queue.remove(ticket)
                self._condition.notify_all()

    @contextmanager
    def turn_if_free(self) -> Iterator[bool]:
        """Whether it is: it does not wait."""
        ticket = object()
        with self._condition:
            free = not self._queue
            if free:
                self._queue.append(ticket)
        try:
            yield free
        finally:
            if free:
                with self._condition:
                    self._queue.remove(ticket)
                    self._condition.notify_all()
