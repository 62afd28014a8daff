import random

import pytest

from benchmarks import planner_forecast
from benchmarks.planner_forecast import burst_series, day_series, errors, table, trace_series
from dynamo.planner.config import PREDICTORS
from dynamo.simulator.trace import TraceRequest


def request(arrival_s: float, prompt: int, output: int) -> TraceRequest:
    return TraceRequest(arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output, block_ids=())


def test_a_trace_by_intervals() -> None:
    """The last interval is not whole; the second has no requests."""
    series = trace_series([request(0, 10, 1), request(9, 30, 3), request(25, 50, 5), request(31, 9, 9)], 10)
    assert series == {
        "requests/s": [0.2, 0.0, 0.1],
        "prompt tokens": [20, 20, 50],
        "output tokens": [2, 2, 5],
    }


def test_the_error_of_the_last_value() -> None:
    """It is off by one of the next value, and by four of the fourth."""
    series = [float(value) for value in range(1, 21)]
    wapes, _ = errors("constant", series)
    counted = series[5:]
    assert wapes == pytest.approx([len(counted) / sum(counted), 4 * len(counted) / sum(counted)])


def test_the_series_have_their_shape() -> None:
    day, burst = day_series(180.0, random.Random(1)), burst_series(180.0, random.Random(1))
    assert len(day) == 1920
    assert max(day) > 4 * min(day)
    assert max(burst) > 3 * min(burst)
    assert day == day_series(180.0, random.Random(1))


def test_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_forecast, "_SYNTHETIC_INTERVALS", 30)
    monkeypatch.setattr(planner_forecast, "INTERVALS_S", (1800.0,))
    lines = list(table([request(600 * i, 100, 10) for i in range(60)]))
    assert lines[0] == "| series | " + " | ".join(PREDICTORS) + " |"
    assert len(lines) == 2 + 5 + 2
    assert all(line.count("|") == len(PREDICTORS) + 2 for line in lines)
