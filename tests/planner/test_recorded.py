"""A decision as Prometheus reads it."""

import math

from prometheus_client import CollectorRegistry

from dynamo.planner.decision import Decision, Forecast, RoleDecision
from dynamo.planner.recorded import record
from dynamo.protocols.model_card import WorkerType
from dynamo.telemetry.planner_metrics import PlannerMetrics

FULL = Decision(
    number=1,
    at_s=0.0,
    observed=Forecast(requests_per_s=3.0, prompt_tokens=100, output_tokens=10),
    forecast=Forecast(requests_per_s=4.0, prompt_tokens=110, output_tokens=11),
    ttft_s=0.5,
    itl_s=0.05,
    roles=(
        RoleDecision(role=WorkerType.Decode, ready=1, current=2, throughput=3, load=4, wanted=5, target=3, withheld=4),
    ),
    held="x",
    problems=("a", "b"),
)


class Shown:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.metrics = PlannerMetrics(self._registry)

    def value(self, name: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(f"dynamo_planner_{name}", labels)


def test_every_figure() -> None:
    shown = Shown()
    record(shown.metrics, FULL)
    assert [shown.value("requests_per_second", kind=kind) for kind in ("observed", "forecast")] == [3, 4]
    assert [shown.value("prompt_tokens", kind=kind) for kind in ("observed", "forecast")] == [100, 110]
    assert [shown.value("output_tokens", kind=kind) for kind in ("observed", "forecast")] == [10, 11]
    assert shown.value("time_to_first_token_seconds") == 0.5
    assert shown.value("inter_token_latency_seconds") == 0.05
    names = ("ready_workers", "current_workers", "wanted_workers", "target_workers", "withheld_workers")
    assert [shown.value(name, role="decode") for name in names] == [1, 2, 5, 3, 4]
    assert [shown.value("proposed_workers", role="decode", policy=policy) for policy in ("throughput", "load")] == [
        3,
        4,
    ]
    assert (shown.value("held"), shown.value("problems"), shown.value("decisions_total")) == (1, 2, 1)


def test_what_is_not_known_yet_is_not_zero() -> None:
    shown = Shown()
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds"):
        value = shown.value(name)
        assert value is not None
        assert math.isnan(value)


def test_what_is_not_known_any_more_is_not_shown() -> None:
    shown = Shown()
    record(shown.metrics, FULL)
    record(shown.metrics, Decision(number=2, at_s=1.0))
    assert shown.value("requests_per_second", kind="observed") is None
    assert shown.value("target_workers", role="decode") is None
    ttft_s = shown.value("time_to_first_token_seconds")
    assert ttft_s is not None
    assert math.isnan(ttft_s)
    assert (shown.value("held"), shown.value("decisions_total")) == (0, 2)
