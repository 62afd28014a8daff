"""The floor, once in an interval."""

from dynamo.planner.forecast.constant import ConstantForecaster
from dynamo.planner.need import Targets
from dynamo.planner.observation import Traffic
from dynamo.planner.throughput_scaling import ThroughputPolicy
from dynamo.protocols.model_card import WorkerType

from .scripted_model import ScriptedModel

TARGETS = Targets(ttft_s=0.5, itl_s=0.05)


def _feed(policy: ThroughputPolicy, now_s: float, rate: float, *, told: bool = True) -> None:
    traffic = Traffic(
        duration_s=5.0,
        requests=rate * 5,
        prompt_tokens=1000.0 if told else None,
        cached_tokens=None,
        output_tokens=200.0 if told else None,
        ttft_s=None,
        itl_s=None,
    )
    policy.observe(now_s, traffic, [WorkerType.Decode], TARGETS)


def test_needs_change_with_the_interval_only() -> None:
    policy = ThroughputPolicy(20.0, ScriptedModel(), ConstantForecaster)
    seen = []
    for tick in range(1, 13):
        _feed(policy, 5.0 * tick, 10.0 if tick <= 4 else 40.0)
        seen.append(policy.forecast.requests_per_s if policy.forecast is not None else None)
    assert seen == [None] * 3 + [10] * 4 + [40] * 5
    need = policy.needs[WorkerType.Decode]
    assert need is not None
    assert 10 < need.workers < 11


def test_no_traffic_is_a_forecast_and_unknown_lengths_are_none() -> None:
    policy = ThroughputPolicy(5.0, ScriptedModel(), ConstantForecaster)
    _feed(policy, 5, 0.0, told=False)
    need = policy.needs[WorkerType.Decode]
    assert need is not None
    assert need.workers == 0
    _feed(policy, 10, 10.0, told=False)
    assert policy.needs[WorkerType.Decode] is None
