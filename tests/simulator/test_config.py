from typing import Any

import pytest

from dynamo.errors import ConfigError
from dynamo.simulator.config import SimulationConfig
from dynamo.simulator.modes import SimulatedMode
from dynamo.simulator.trace import TraceRequest

REQUEST = TraceRequest(arrival_s=0, prompt_tokens=1000, output_tokens=24, block_ids=(1, 2))


def test_all_routers_are_compared_unless_some_are_named() -> None:
    assert SimulationConfig().modes() == list(SimulatedMode)
    assert SimulationConfig(router_mode="kv, random").modes() == [SimulatedMode.KV, SimulatedMode.RANDOM]


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 0},
        {"rate": 0.0},
        {"rate": float("nan")},
        {"limit": 0},
        {"trace_block_size": 0},
        {"event_latency_s": -1.0},
        {"router_mode": "kv,best"},
    ],
)
def test_refuses_what_cannot_be_simulated(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SimulationConfig(**settings)


def test_workers_hold_any_request() -> None:
    engine = SimulationConfig(num_gpu_blocks_override=2).engine([REQUEST])
    assert engine.num_blocks == 2
    assert engine.context_length >= 1024
    with pytest.raises(ConfigError, match="1024 tokens, which do not fit in 1 blocks of 512"):
        SimulationConfig(num_gpu_blocks_override=1).engine([REQUEST])


def test_blocks_given_as_none_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_blocks"):
        SimulationConfig(num_gpu_blocks_override=0).engine([REQUEST])
