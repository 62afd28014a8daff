"""A planner by its options, and its decision as a line."""

import pytest

from dynamo.errors import ConfigError
from dynamo.planner.config import PREDICTORS, PlannerOptions
from dynamo.planner.explanation import explain
from dynamo.planner.make import make_planner
from dynamo.planner.observation import Fleet, Observation, Traffic
from dynamo.planner.profile import DecodePoint, PrefillPoint, Profile
from dynamo.protocols.model_card import WorkerType

PROFILE = Profile(
    engine="mocker",
    model="m",
    prefill=(PrefillPoint(prompt_tokens=1000, ttft_s=0.1, tokens_per_s=10_000),),
    decode=tuple(
        DecodePoint(context_tokens=1000, concurrency=n, itl_s=0.01 + 0.001 * n, tokens_per_s=n / (0.01 + 0.001 * n))
        for n in (1, 40, 80)
    ),
)
SEEN = Observation(
    now_s=100.0,
    traffic=Traffic(
        duration_s=5.0,
        requests=50.0,
        prompt_tokens=1500.0,
        cached_tokens=500.0,
        output_tokens=200.0,
        ttft_s=0.12,
        itl_s=0.03,
    ),
    fleets={WorkerType.Decode: Fleet(desired=1, ready=1), WorkerType.Prefill: Fleet(desired=2, ready=2)},
)


@pytest.mark.parametrize("profile", [None, PROFILE])
@pytest.mark.parametrize("predictor", [name for name in PREDICTORS if name not in ("arima", "seasonal")])
def test_made_as_options_say(predictor: str, profile: Profile | None) -> None:
    planner = make_planner(PlannerOptions(predictor=predictor, gpu_budget=6), profile, converts=False)
    decision = planner.tick(SEEN)
    assert decision.number == 1
    assert bool(decision.actions) == (profile is not None)


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="--gpu-budget is 3"):
        make_planner(PlannerOptions(decode_gpus=4, gpu_budget=3), None, converts=False)


def test_a_decision_as_a_line() -> None:
    line = explain(make_planner(PlannerOptions(gpu_budget=4), PROFILE, converts=False).tick(SEEN))
    assert line.startswith(
        "decision 1 | observed 10 req/s of 1000+200 tokens, TTFT 0.12 s, ITL 30 ms | prefill 2 (2 ready) -> "
    )
    assert "decode 1 (1 ready) -> 2 (load 3: 7.17 req/s x 200 tokens x 50 ms = 71.7 at once" in line
    assert line.endswith("actions: scale decode to 2")


def test_advice_that_is_not_taken_is_nobodys_change() -> None:
    planner = make_planner(PlannerOptions(advisory=True), PROFILE, converts=False)
    for tick in range(3):
        decision = planner.tick(Observation(now_s=5.0 * tick, traffic=SEEN.traffic, fleets=SEEN.fleets))
        assert decision.actions
        assert decision.problems == ()
