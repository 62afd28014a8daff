"""How many requests may wait for their first token so that none waits too long. Pure."""

import math

_AIM = 0.65  # share of the limit that the last one should wait: waits scatter
_TELLING = 0.5  # share of that from which on a wait says how long others will take
_WEIGHT = 0.05  # of one observation
_IN_USE = 0.5  # share of the room from which on it counts as used
_GROWTH = 1.02  # of the room by a short wait while it was in use: less than a long one takes away


class FirstTokenForecast:
    """Learns from each first token how many requests had been waiting before it and how long it then took.

    By Little's law the two are in proportion as long as requests queue up: with `ahead` of them it took `wait_s`, so
    `(ahead + 1) · limit_s / wait_s` may wait for `limit_s`. Where nothing queues up this means little, since a batch of
    many takes hardly longer than one. So short waits say nothing but that there is room for some more, if what there
    was had been used; and until a first wait has been long there is no bound at all: an engine is given the chance to
    show what it can do.
    """

    def __init__(self, limit_s: float) -> None:
        self._aim_s = limit_s * _AIM
        self._room = math.inf

    @property
    def room(self) -> float:
        """How many may wait; may be less than 1."""
        return self._room

    def observe(self, *, ahead: int, wait_s: float) -> None:
        """A first token came, `wait_s` after its request had been sent with `ahead` others waiting."""
        if wait_s >= self._aim_s * _TELLING:
            estimate = (ahead + 1) * self._aim_s / wait_s
            self._room = estimate if math.isinf(self._room) else self._room + _WEIGHT * (estimate - self._room)
        elif ahead + 1 >= self._room * _IN_USE:
            self._room = max(self._room, 1.0) * _GROWTH

    def wait_s(self, waiting: int) -> float:
        """How long `waiting` requests take to get their first tokens."""
        return 0.0 if math.isinf(self._room) else waiting * self._aim_s / self._room
