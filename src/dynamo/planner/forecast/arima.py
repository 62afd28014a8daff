"""ARIMA, by statsmodels."""

import warnings
from collections import deque

import numpy as np
from statsmodels.tsa.arima.model import ARIMA

from dynamo.planner.forecast.base import LARGEST, plausible

_HISTORY = 120  # intervals: bounds what a fit costs
_ENOUGH = 12
# Differences, as traffic has no mean that it returns to, and one moving average: exponential smoothing, as much of it
# as the noise asks for. Orders with an autoregressive part did worse on the benchmark's series.
_ORDER = (0, 1, 1)


class ArimaForecaster:
    """Fitted anew for each forecast by Hannan and Rissanen's two regressions, which always end, in milliseconds."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_HISTORY)

    def observe(self, value: float) -> None:
        self._values.append(min(value, LARGEST))

    def forecast(self, steps: int = 1) -> float:
        if len(self._values) < _ENOUGH or min(self._values) == max(self._values):
            return self._values[-1] if self._values else 0.0
        peak = max(self._values)
        return plausible(self._fitted(steps, peak), last=self._values[-1], peak=peak)

    def _fitted(self, steps: int, peak: float) -> float:
        scaled = np.asarray(self._values) / peak
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of starting values and the like: what comes out is checked by plausible()
            model = ARIMA(scaled, order=_ORDER, enforce_stationarity=False, enforce_invertibility=False)
            fitted = model.fit(method="hannan_rissanen", low_memory=True)
            return float(fitted.forecast(steps)[-1]) * peak
