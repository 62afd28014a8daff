"""What comes again each day, whatever a day's length: by seasonal decomposition."""

from collections import deque

import numpy as np
from numpy.typing import NDArray
from statsmodels.tsa.seasonal import STL

from dynamo.planner.forecast.base import LARGEST, plausible

_HISTORY = 1024  # intervals: two days of 180 s
_SHORTEST = 8  # intervals of a season
_CYCLES = 2  # that must have been seen before one counts
_ALIKE = 0.5  # the least autocorrelation at its length that makes a season
_REVIEW = 16  # intervals until the decomposition is made anew
_SMOOTH_SHARE = 1 / 12  # of a season: what happens within two hours of a day is taken for noise
_SMOOTHING = 0.5  # of the level, which follows what the season does not explain

Values = NDArray[np.float64]


class SeasonalForecaster:
    """The last cycle's course, at the present level (STL: Cleveland et al. 1990; its length by autocorrelation).

    Where nothing comes again, and until two cycles were seen, it says the last interval's value.
    """

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_HISTORY)
        self._season: Values | None = None  # one cycle, whose first value is of the next interval at the last review
        self._since_review = 0
        self._level = 0.0

    def observe(self, value: float) -> None:
        value = min(value, LARGEST)
        if self._season is not None:
            expected = self._season[self._since_review % len(self._season)]
            self._level += _SMOOTHING * (value - float(expected) - self._level)
        self._values.append(value)
        self._since_review += 1
        if self._since_review >= _REVIEW:
            self._review()

    def forecast(self, steps: int = 1) -> float:
        last = self._values[-1] if self._values else 0.0
        if self._season is None:
            return last
        season = self._season[(self._since_review + steps - 1) % len(self._season)]
        return plausible(self._level + float(season), last=last, peak=max(self._values))

    def _review(self) -> None:
        self._since_review = 0
        self._season = None
        values = np.asarray(self._values)
        peak = float(values.max())
        period = _period(values / peak) if peak else None
        if period is not None:
            jump = 1 + period // 10  # a tenth of the course is drawn straight: 16 ms instead of 600
            parts = STL(values / peak, period=period, trend_jump=jump, low_pass_jump=jump).fit()
            self._season = _smooth(parts.seasonal[-period:]) * peak
            self._level = float(parts.trend[-1]) * peak


def _smooth(season: Values) -> Values:
    """The mean over a window around each value, as in a circle: two cycles tell little of a single interval."""
    window = 1 + 2 * int(len(season) * _SMOOTH_SHARE / 2)
    around = np.concatenate([season[-(window // 2) :], season, season[: window // 2]]) if window > 1 else season
    return np.convolve(around, np.full(window, 1 / window), mode="valid")


def _period(values: Values) -> int | None:
    """The length of the season; None: there is none. By the first peak of the autocorrelation, around the line."""
    count = len(values)
    longest = count // _CYCLES
    if longest <= _SHORTEST:
        return None
    at = np.arange(count)
    rest = values - np.polyval(np.polyfit(at, values, 1), at)
    power = np.abs(np.fft.rfft(rest, 2 * count)) ** 2  # padded: no wrapping around
    correlation = np.fft.irfft(power)[: longest + 1]
    if correlation[0] <= 0:
        return None
    correlation = correlation / correlation[0] * count / (count - np.arange(longest + 1))
    below = np.flatnonzero(correlation < 0)  # all up to here is the values' own inertia
    if not len(below):
        return None
    start = max(_SHORTEST, int(below[0]))
    if start >= longest:
        return None
    best = start + int(np.argmax(correlation[start:]))
    return best if correlation[best] >= _ALIKE and best < longest else None
