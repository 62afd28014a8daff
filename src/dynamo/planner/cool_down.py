"""Fewer workers only after fewer have been enough for a while. Pure."""

from collections import deque


class CoolDown:
    """The highest number of workers that was wanted within the last `delay_s`: what one may go down to.

    As the stabilization window of Kubernetes' horizontal pod autoscaler does it. A number counts until the next one is
    known, so that times without data neither shorten nor prolong the delay.
    """

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._wanted: deque[tuple[float, int]] = deque()  # when last, ascending; and how many, descending

    def floor(self, wanted: int, current: int, now_s: float) -> int:
        """`wanted` is what is wanted from now on; at first all that is known of the past is `current`."""
        entries = self._wanted
        if entries and now_s < entries[-1][0]:  # the clock was set back
            entries.clear()
        last = entries.pop()[1] if entries else current
        entries.append((now_s, last))
        while entries and entries[-1][1] <= wanted:
            entries.pop()
        entries.append((now_s, wanted))
        while entries[0][1] > wanted and entries[0][0] + self._delay_s <= now_s:
            entries.popleft()
        return entries[0][1]

    def restart(self, workers: int, now_s: float) -> None:
        """Somebody else has chosen this number: it stays for the delay, if more are not wanted."""
        self._wanted.clear()
        self._wanted.append((now_s, workers))
