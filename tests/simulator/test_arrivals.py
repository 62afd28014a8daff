import random
from itertools import pairwise

import pytest

from dynamo.simulator.arrivals import Arrivals, arrival_times_s, poisson_times_s, scaled_times_s, trace_rate_per_s
from dynamo.simulator.trace import TraceRequest


def requests_at(*times_s: float) -> list[TraceRequest]:
    return [TraceRequest(arrival_s=t, prompt_tokens=1, output_tokens=1, block_ids=(0,)) for t in times_s]


def test_the_traces_own_times_on_another_scale() -> None:
    requests = requests_at(10, 10, 12, 20)
    assert trace_rate_per_s(requests) == 0.4
    assert scaled_times_s(requests, 0.4) == [0, 0, 2, 10]
    assert scaled_times_s(requests, 4) == pytest.approx([0, 0, 0.2, 1])


def test_without_a_rate_times_stay_as_they_are() -> None:
    assert arrival_times_s(Arrivals.TRACE, requests_at(10, 12), None, random.Random(0)) == [0, 2]


def test_all_at_once_stays_all_at_once() -> None:
    assert scaled_times_s(requests_at(3, 3), 5.0) == [0, 0]
    assert poisson_times_s(2, float("inf"), random.Random(0)) == [0, 0]


def test_poisson_has_the_rate_and_repeats() -> None:
    times_s = poisson_times_s(10_000, 5.0, random.Random(1))
    assert times_s == sorted(times_s) == poisson_times_s(10_000, 5.0, random.Random(1))
    assert times_s[-1] == pytest.approx(2000, rel=0.05)
    gaps_s = [b - a for a, b in pairwise(times_s)]
    assert sum(gap > 0.2 for gap in gaps_s) / len(gaps_s) == pytest.approx(0.368, abs=0.02)  # 1/e, as memory-less is
