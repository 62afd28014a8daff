"""The comparison with real processes runs; a busy machine is late, so times are not tested."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.router_replay import ReplaySample
from benchmarks.router_truth import HIT_RATIO_ERROR_MAX, Comparison, compare
from dynamo.simulator.config import SimulationConfig
from dynamo.simulator.modes import SimulatedMode
from dynamo.simulator.simulation import simulate
from dynamo.simulator.trace import read_trace

SLICE = Path(__file__).parents[1] / "data" / "mooncake_conversation_slice.jsonl"
CONFIG = SimulationConfig(workers=2, rate=8.0, limit=10)


@pytest.fixture
def brief(tmp_path: Path) -> Path:
    """The same requests with answers that take no time: what is cached lies in the prompts."""
    path = tmp_path / "trace.jsonl"
    lines = [json.loads(line) | {"output_length": 10} for line in SLICE.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_real_processes_find_as_much_in_their_caches(brief: Path) -> None:
    comparison = compare(brief, CONFIG, SimulatedMode.KV)
    assert comparison.real.requests == 10
    assert comparison.real.hit_ratio > 0
    assert comparison.hit_ratio_error <= HIT_RATIO_ERROR_MAX
    assert 0 < comparison.real.ttft_mean_s < comparison.real.latency_mean_s


@pytest.mark.parametrize(("real_share", "holds"), [(1.0, True), (1.19, True), (0.8, False), (1.3, False)])
def test_what_counts_as_the_truth(real_share: float, holds: bool) -> None:
    simulated = simulate(CONFIG, SimulatedMode.RANDOM, read_trace(SLICE, limit=10))
    real = ReplaySample(
        requests=10,
        hit_ratio=simulated.hit_ratio,
        ttft_mean_s=simulated.ttft_mean_s * real_share,
        latency_mean_s=simulated.latency_mean_s,
    )
    assert Comparison(real=real, simulated=simulated).holds == holds
    other = dataclasses.replace(simulated, hit_ratio=simulated.hit_ratio + 0.03)
    assert not Comparison(real=real, simulated=other).holds
