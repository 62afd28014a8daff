"""What holds for any observations, and for any fleets."""

import math
from collections.abc import Sequence

import msgspec
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dynamo.planner.bounds import role_bounds
from dynamo.planner.config import MODES, PlannerOptions
from dynamo.planner.decision import Decision
from dynamo.planner.explanation import explain
from dynamo.planner.forecast.constant import ConstantForecaster
from dynamo.planner.observation import Fleet, Observation, Traffic
from dynamo.planner.perf_model import PerfModel
from dynamo.planner.state_machine import Planner
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType

from .scripted_model import ScriptedModel, UnknownModel
from .simulated_fleets import SimulatedFleets

PREFILL, DECODE, AGGREGATED = WorkerType.Prefill, WorkerType.Decode, WorkerType.Aggregated

anything = st.one_of(
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-300, 1e300]),
    st.floats(min_value=0, max_value=1000),
)
maybe = st.none() | anything
counts = st.one_of(st.integers(0, 20), st.integers(-3, 3), st.sampled_from([10**7, 10**30]))
NO_TRAFFIC = Traffic(
    duration_s=5.0,
    requests=0.0,
    prompt_tokens=None,
    cached_tokens=None,
    output_tokens=None,
    ttft_s=None,
    itl_s=None,
)
models = st.one_of(
    st.just(UnknownModel()),
    st.builds(
        ScriptedModel,
        tokens_per_s=st.floats(1, 1e6),
        step_s=st.floats(0, 0.1),
        request_s=st.floats(1e-4, 0.1),
    ),
)


@st.composite
def option_sets(draw: st.DrawFn) -> PlannerOptions:
    least_prefill, least_decode = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    gpus = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    least = least_prefill * gpus[0] + least_decode * gpus[1]
    return PlannerOptions(
        min_prefill_workers=least_prefill,
        max_prefill_workers=draw(st.integers(max(1, least_prefill), 12)),
        min_decode_workers=least_decode,
        max_decode_workers=draw(st.integers(least_decode, 12)),
        prefill_gpus=gpus[0],
        decode_gpus=gpus[1],
        gpu_budget=draw(st.none() | st.integers(least, least + 20)),
        mode=draw(st.sampled_from(MODES)),
        throughput_interval_s=draw(st.sampled_from([5.0, 20.0])),
        scale_down_delay_s=draw(st.sampled_from([0.0, 10.0, 30.0])),
        start_timeout_s=draw(st.sampled_from([15.0, 600.0])),
        convert_roles=draw(st.booleans()),
    )


traffics = st.builds(
    Traffic,
    duration_s=anything,
    requests=anything,
    prompt_tokens=maybe,
    cached_tokens=maybe,
    output_tokens=maybe,
    ttft_s=maybe,
    itl_s=maybe,
)
loads = st.builds(
    WorkerLoad,
    running_requests=counts,
    waiting_requests=counts,
    kv_used_blocks=counts,
    kv_total_blocks=counts,
    prefill_tokens=st.none() | counts,
    busy_s=anything,
)
fleets = st.builds(
    Fleet,
    desired=counts,
    ready=counts,
    starting_s=st.lists(anything, max_size=3).map(tuple),
    draining=counts,
    loads=st.none() | st.dictionaries(st.sampled_from("abc"), loads, max_size=3),
)
observations = st.builds(
    Observation,
    now_s=anything,
    traffic=st.none() | traffics,
    fleets=st.none() | st.dictionaries(st.sampled_from([PREFILL, DECODE, AGGREGATED]), fleets, max_size=2),
)


def _make(options: PlannerOptions, model: PerfModel) -> Planner:
    return Planner(options, model, ConstantForecaster, converts=True)


def _check(decision: Decision, options: PlannerOptions) -> None:
    """What holds for each decision."""
    gpus = 0
    for role in decision.roles:
        bounds = role_bounds(options, role.role)
        assert bounds.least <= role.target <= bounds.most
        gpus += role.target * bounds.gpus
    assert options.gpu_budget is None or gpus <= options.gpu_budget
    text = explain(decision)
    assert "\n" not in text
    for figure in _floats(msgspec.to_builtins(decision)):
        assert math.isfinite(figure)


def _floats(value: object) -> Sequence[float]:
    if isinstance(value, float):
        return [value]
    if isinstance(value, dict):
        return [figure for each in value.values() for figure in _floats(each)]
    if isinstance(value, list | tuple):
        return [figure for each in value for figure in _floats(each)]
    return []


@settings(max_examples=60, deadline=None)
@given(option_sets(), models, st.lists(observations, max_size=12))
def test_nonsense_is_survived(options: PlannerOptions, model: PerfModel, seen: list[Observation]) -> None:
    planner = _make(options, model)
    for observation in seen:
        _check(planner.tick(observation), options)


@st.composite
def sensible_traffic(draw: st.DrawFn) -> Traffic | None:
    if draw(st.integers(0, 9)) == 0:
        return None
    return Traffic(
        duration_s=5.0,
        requests=float(draw(st.integers(0, 500))),
        prompt_tokens=draw(st.none() | st.floats(1, 10_000)),
        cached_tokens=draw(st.none() | st.floats(0, 10_000)),
        output_tokens=draw(st.none() | st.floats(1, 2_000)),
        ttft_s=draw(st.none() | st.floats(0, 10)),
        itl_s=draw(st.none() | st.floats(0, 1)),
    )


@settings(max_examples=60, deadline=None)
@given(option_sets(), models, st.data())
def test_fleets_stay_within_bounds_and_budget(options: PlannerOptions, model: PerfModel, data: st.DataObject) -> None:
    """Workers that start and that drain count; a fleet that was larger at first only shrinks until it fits."""
    roles = data.draw(st.sampled_from([(AGGREGATED,), (PREFILL, DECODE)]))
    fleets = SimulatedFleets(
        {role: data.draw(st.integers(0, 12)) for role in roles},
        start_s=data.draw(st.sampled_from([0.0, 12.0, 30.0])),
        drain_s=data.draw(st.sampled_from([0.0, 12.0, 30.0])),
        order_delay=data.draw(st.sampled_from([0, 0, 1, 3, None])),
    )
    fleets.stuck = data.draw(st.booleans())
    bounds = {role: role_bounds(options, role) for role in roles}
    planner = _make(options, model)
    before = sum(fleets.roles[role].held * bounds[role].gpus for role in roles)
    for tick in range(data.draw(st.integers(1, 40))):
        observation = Observation(now_s=5.0 * tick, traffic=data.draw(sensible_traffic()), fleets=fleets.observed())
        decision = planner.tick(observation)
        _check(decision, options)
        fleets.apply(decision.actions)
        fleets.advance(5.0)
        gpus = sum(fleets.roles[role].held * bounds[role].gpus for role in roles)
        assert options.gpu_budget is None or gpus <= max(options.gpu_budget, before)
        before = gpus
        for role in roles:
            assert fleets.roles[role].desired <= max(bounds[role].most, 12)


@settings(max_examples=30, deadline=None)
@given(option_sets(), models, st.data())
def test_constant_load_ends_in_rest(options: PlannerOptions, model: PerfModel, data: st.DataObject) -> None:
    """Fleets that obey at once, and a load that does not depend on them: after two ticks of each policy all is done."""
    roles = data.draw(st.sampled_from([(AGGREGATED,), (PREFILL, DECODE)]))
    fleets = SimulatedFleets({role: role_bounds(options, role).least for role in roles})
    traffic = Traffic(
        duration_s=5.0,
        requests=float(data.draw(st.integers(0, 500))),
        prompt_tokens=data.draw(st.floats(1, 10_000)),
        cached_tokens=0.0,
        output_tokens=data.draw(st.floats(1, 2_000)),
        ttft_s=None,
        itl_s=None,
    )
    planner = _make(options, model)
    numbers: dict[WorkerType, list[int]] = {role: [] for role in roles}
    actions: list[int] = []
    for tick in range(60):
        decision = planner.tick(Observation(now_s=5.0 * tick, traffic=traffic, fleets=fleets.observed()))
        fleets.apply(decision.actions)
        fleets.advance(5.0)
        actions.append(len(decision.actions))
        for role in roles:
            numbers[role].append(fleets.roles[role].desired)
    rest = (
        2 * math.ceil(options.throughput_interval_s / 5) + 12
    )  # the most workers, one in each tick of the load policy
    assert not any(actions[rest:])
    if options.gpu_budget is None:
        assert all(series == sorted(series) for series in numbers.values())


@settings(max_examples=30, deadline=None)
@given(option_sets(), models, st.data())
def test_without_traffic_only_the_fewest_stay(options: PlannerOptions, model: PerfModel, data: st.DataObject) -> None:
    roles = data.draw(st.sampled_from([(AGGREGATED,), (PREFILL, DECODE)]))
    fleets = SimulatedFleets(
        {role: data.draw(st.integers(0, 12)) for role in roles}, start_s=7.0, drain_s=data.draw(st.floats(0, 20))
    )
    planner = _make(options, model)
    for tick in range(120):
        decision = planner.tick(Observation(now_s=5.0 * tick, traffic=NO_TRAFFIC, fleets=fleets.observed()))
        fleets.apply(decision.actions)
        fleets.advance(5.0)
    for role in roles:
        assert fleets.roles[role].ready == role_bounds(options, role).least


@settings(max_examples=60, deadline=None)
@given(models, st.integers(2, 12), st.floats(0, 60))
def test_fewer_never_before_the_delay(model: PerfModel, size: int, delay_s: float) -> None:
    assume(delay_s % 5 > 0.01)
    options = PlannerOptions(mode="load", scale_down_delay_s=delay_s)
    fleets = SimulatedFleets({AGGREGATED: size})
    planner = _make(options, model)
    for tick in range(20):
        decision = planner.tick(Observation(now_s=5.0 * tick, traffic=NO_TRAFFIC, fleets=fleets.observed()))
        assert not decision.actions or 5.0 * tick >= delay_s
        assert decision.roles[0].target >= decision.roles[0].current - 1
        fleets.apply(decision.actions)


def test_an_order_under_way_is_not_taken_back_for_want_of_figures() -> None:
    """It would start a worker while the one that the order ended still drains: found by the test above."""
    planner = _make(PlannerOptions(scale_down_delay_s=0), UnknownModel())
    fleets = SimulatedFleets({AGGREGATED: 6}, order_delay=3)
    first = planner.tick(Observation(now_s=0.0, traffic=NO_TRAFFIC, fleets=fleets.observed()))
    second = planner.tick(Observation(now_s=5.0, traffic=None, fleets=fleets.observed()))
    assert first.actions == second.actions
    assert len(first.actions) == 1
