"""A level and a trend, by a Kalman filter."""

from dynamo.planner.forecast.base import LARGEST, plausible

# Variances of the noise, as multiples of the observations' own: the filter's gains depend on these ratios alone, so
# they hold for any scale.
_LEVEL_NOISE = 1.0
_TREND_NOISE = 0.1
_DAMPING = 0.8  # of the trend, per interval: no traffic rises for ever (Gardner, McKenzie 1985)
_UNKNOWN = 1e6  # the variance of what is not known at the start


class KalmanFilter:
    """The local linear trend model (Harvey 1989, section 2.3), damped.

    Two states need no matrices, and the one package for this (filterpy) has had no release since 2018: our own.
    """

    def __init__(self) -> None:
        self._level = self._trend = 0.0
        self._level_variance = self._trend_variance = _UNKNOWN
        self._covariance = 0.0

    def observe(self, value: float) -> None:
        """Predicts the interval, then corrects by what was seen in it."""
        level, trend = self._level + _DAMPING * self._trend, _DAMPING * self._trend
        trend_variance = _DAMPING**2 * self._trend_variance
        covariance = _DAMPING * self._covariance + trend_variance
        level_variance = self._level_variance + _DAMPING * self._covariance + covariance + _LEVEL_NOISE
        trend_variance += _TREND_NOISE
        surprise, variance = value - level, level_variance + 1.0
        self._level = level + level_variance / variance * surprise
        self._trend = trend + covariance / variance * surprise
        self._level_variance = level_variance / variance
        self._covariance = covariance / variance
        self._trend_variance = trend_variance - covariance * covariance / variance

    def forecast(self, steps: int) -> float:
        """The level so many intervals on; any number."""
        return self._level + self._trend * _DAMPING * (1 - _DAMPING**steps) / (1 - _DAMPING)


class KalmanForecaster:
    """The filter's level and trend, continued."""

    def __init__(self) -> None:
        self._filter = KalmanFilter()
        self._last = self._peak = 0.0

    def observe(self, value: float) -> None:
        self._last = min(value, LARGEST)
        self._peak = max(self._peak, self._last)
        self._filter.observe(self._last)

    def forecast(self, steps: int = 1) -> float:
        return plausible(self._filter.forecast(steps), last=self._last, peak=self._peak)
