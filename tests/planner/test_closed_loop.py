"""A fleet whose latencies follow from its size, under a load that does not change, and a planner that has no model."""

import itertools

import pytest

from dynamo.planner.config import PlannerOptions
from dynamo.planner.forecast.constant import ConstantForecaster
from dynamo.planner.observation import Observation, Traffic
from dynamo.planner.state_machine import Planner
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType

from .scripted_model import UnknownModel
from .simulated_fleets import SimulatedFleets

AGGREGATED = WorkerType.Aggregated


@pytest.mark.parametrize("work", [0.5, 1.9, 3.3, 5.0, 8.7])
@pytest.mark.parametrize("size", [1, 4, 12])
def test_a_constant_load_does_not_make_it_oscillate(work: float, size: int) -> None:
    """`work`: workers that are always busy with it. The fleet may turn round once: then it knows what is not enough."""
    fleets = SimulatedFleets({AGGREGATED: size}, start_s=20, drain_s=10)
    planner = Planner(PlannerOptions(max_decode_workers=20), UnknownModel(), ConstantForecaster)
    numbers: list[int] = []
    for tick in range(300):
        ready = fleets.roles[AGGREGATED].ready
        used = work / ready
        late = used >= 0.95
        load = WorkerLoad(running_requests=round(10 * used), waiting_requests=30 if late else 0)
        traffic = Traffic(
            duration_s=5.0,
            requests=50.0,
            prompt_tokens=1000.0,
            cached_tokens=0.0,
            output_tokens=200.0,
            ttft_s=5.0 if late else 0.1 / (1 - used),
            itl_s=0.02,
        )
        observation = Observation(now_s=5.0 * tick, traffic=traffic, fleets=fleets.observed({AGGREGATED: load}))
        fleets.apply(planner.tick(observation).actions)
        fleets.advance(5.0)
        numbers.append(fleets.roles[AGGREGATED].desired)
    steps = [after - before for before, after in itertools.pairwise(numbers) if after != before]
    turns = sum((one > 0) != (next_one > 0) for one, next_one in itertools.pairwise(steps))
    assert turns <= 2
    assert len(set(numbers[200:])) == 1
    assert numbers[-1] > work
