"""Forecasts of what is steady, rises, comes again, or makes no sense."""

import builtins
import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynamo.errors import ConfigError
from dynamo.planner.config import PREDICTORS
from dynamo.planner.forecast.base import plausible
from dynamo.planner.forecast.make import make_forecaster

CPU_S_MAX = 0.15  # three times what a fit may take: tests run beside others
VALUES = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
STEADY = st.builds(lambda value, count: [value] * count, VALUES, st.integers(0, 60))


def forecast_after(name: str, values: Sequence[float], steps: int = 1) -> float:
    forecaster = make_forecaster(name)
    for value in values:
        forecaster.observe(value)
    return forecaster.forecast(steps)


def day(intervals: int, period: int, seed: int = 1) -> list[float]:
    rng = random.Random(seed)
    return [10 + 8 * math.sin(2 * math.pi * i / period) + rng.gauss(0, 0.2) for i in range(intervals)]


@pytest.mark.parametrize("name", PREDICTORS)
@given(values=st.lists(VALUES, max_size=60) | STEADY, steps=st.integers(1, 20))
@example(values=[0.0] * 40, steps=3)
@example(values=[1e308] * 20 + [0.0] * 20, steps=20)
@example(values=[5e-324, 0.0] * 20, steps=2)
@example(values=[2.0**i for i in range(60)], steps=20)
@settings(max_examples=10, deadline=None)
def test_a_forecast_is_a_number_that_traffic_can_have(name: str, values: list[float], steps: int) -> None:
    """At each moment on the way, and no warning leaks: they are errors here."""
    forecaster = make_forecaster(name)
    assert forecaster.forecast(steps) == 0
    for position, value in enumerate(values):
        forecaster.observe(value)
        if position % 20 == 19 or position == len(values) - 1:
            assert 0 <= forecaster.forecast(steps) < math.inf


@pytest.mark.parametrize("name", PREDICTORS)
def test_what_is_steady_stays(name: str) -> None:
    assert forecast_after(name, [7.0] * 200, steps=3) == pytest.approx(7.0, rel=1e-3)


@pytest.mark.parametrize("name", PREDICTORS)
def test_silence_is_forecast_when_there_has_long_been_silence(name: str) -> None:
    assert forecast_after(name, [7.0] * 20 + [0.0] * 130, steps=2) == pytest.approx(0.0, abs=1e-2)


def test_a_ramp_goes_on() -> None:
    assert forecast_after("kalman", [float(i) for i in range(40)], steps=2) > 39


def test_the_moving_average_is_of_the_last_three() -> None:
    assert forecast_after("moving-average", [100, 1, 2, 6]) == 3


def test_arima_smoothes_noise() -> None:
    """Around a level it is nearer to it than the last value is, over many."""
    rng = random.Random(3)
    values = [10 + rng.gauss(0, 2) for _ in range(100)]
    smooth = [abs(forecast_after("arima", values[:end]) - 10) for end in range(80, 100)]
    assert sum(smooth) < 0.6 * sum(abs(value - 10) for value in values[79:99])


@pytest.mark.parametrize("period", [24, 240])
def test_what_comes_again_is_forecast(period: int) -> None:
    """At the steepest place of the third day and later, where who only looks back is late."""
    values = day(3 * period + period // 2, period)
    ahead = period // 8
    expected = 10 + 8 * math.sin(2 * math.pi * (len(values) + ahead - 1) / period)
    assert forecast_after("seasonal", values, ahead) == pytest.approx(expected, abs=1.5)
    assert abs(forecast_after("constant", values, ahead) - expected) > 4


def test_chance_has_no_season() -> None:
    rng = random.Random(5)
    values = [rng.uniform(0, 10) for _ in range(500)]
    assert forecast_after("seasonal", values) == values[-1]


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.alone
def test_costs_little_however_long_it_has_run(name: str) -> None:
    """CPU time, the median of many intervals' and the review's too."""
    values = day(2200, 480)
    forecaster = make_forecaster(name)
    for value in values[:2100]:
        forecaster.observe(value)
    costs = []
    for value in values[2100:2120]:
        before_s = time.process_time()
        forecaster.observe(value)
        forecaster.forecast(2)
        costs.append(time.process_time() - before_s)
    assert max(costs) < CPU_S_MAX


def test_no_such_predictor() -> None:
    with pytest.raises(ConfigError, match=r"oracle.*constant"):
        make_forecaster("oracle")


@pytest.mark.parametrize("name", ["arima", "seasonal"])
def test_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_statsmodels(monkeypatch)
    with pytest.raises(ConfigError, match=rf"{name} needs the statsmodels package: pip install 'dynamo-py\[planner\]'"):
        make_forecaster(name)


@pytest.mark.parametrize("name", ["constant", "moving-average", "kalman"])
def test_the_others_need_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_statsmodels(monkeypatch)
    make_forecaster(name)


def without_statsmodels(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., object] = builtins.__import__

    def refuse(
        name: str,
        globals_: Mapping[str, object] | None = None,
        locals_: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> object:
        if name.partition(".")[0] == "statsmodels":
            raise ModuleNotFoundError(f"No module named {name!r}", name="statsmodels")
        return original(name, globals_, locals_, fromlist, level)

    for module in ("arima", "seasonal"):
        monkeypatch.delitem(sys.modules, f"dynamo.planner.forecast.{module}", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize(
    ("forecast", "expected"), [(math.nan, 3), (math.inf, 3), (-1, 0), (4, 4), (10, 10), (11, 10), (-math.inf, 3)]
)
def test_a_model_that_runs_away_is_stopped(forecast: float, expected: float) -> None:
    assert plausible(forecast, last=3, peak=5) == expected
