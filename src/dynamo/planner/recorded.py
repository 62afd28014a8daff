"""A decision as metrics."""

from prometheus_client import Gauge

from dynamo.planner.decision import Decision, Forecast, RoleDecision
from dynamo.telemetry.planner_metrics import PlannerMetrics


def record(metrics: PlannerMetrics, decision: Decision) -> None:
    """In the place of the decision before."""
    metrics.decisions.inc()
    metrics.held.set(1 if decision.held else 0)
    metrics.problems.set(len(decision.problems))
    for gauge in (metrics.requests, metrics.prompt_tokens, metrics.output_tokens):
        gauge.clear()
    _record_traffic(metrics, "observed", decision.observed)
    _record_traffic(metrics, "forecast", decision.forecast)
    _set_known(metrics.ttft, decision.ttft_s)
    _set_known(metrics.itl, decision.itl_s)
    for gauge in (metrics.ready, metrics.current, metrics.proposed, metrics.wanted, metrics.target, metrics.withheld):
        gauge.clear()
    for role in decision.roles:
        _record_role(metrics, role)


def _record_traffic(metrics: PlannerMetrics, kind: str, traffic: Forecast | None) -> None:
    if traffic is not None:
        metrics.requests.labels(kind).set(traffic.requests_per_s)
        metrics.prompt_tokens.labels(kind).set(traffic.prompt_tokens)
        metrics.output_tokens.labels(kind).set(traffic.output_tokens)


def _record_role(metrics: PlannerMetrics, role: RoleDecision) -> None:
    name = role.role.value
    metrics.ready.labels(name).set(role.ready)
    metrics.current.labels(name).set(role.current)
    for policy, workers in (("throughput", role.throughput), ("load", role.load)):
        if workers is not None:
            metrics.proposed.labels(name, policy).set(workers)
    metrics.wanted.labels(name).set(role.wanted)
    metrics.target.labels(name).set(role.target)
    metrics.withheld.labels(name).set(role.withheld)


def _set_known(gauge: Gauge, value: float | None) -> None:
    """NaN, as Prometheus' clients say it, where nothing is known."""
    gauge.set(float("nan") if value is None else value)
