"""A planner's decision for people."""

from collections.abc import Sequence

from dynamo.planner.decision import Decision, Forecast, RoleDecision
from dynamo.planner.decisions import PlannerReport
from dynamo.planner.explanation import described

_COLUMNS = ("role", "ready", "current", "throughput", "load", "wanted", "target")


def report_lines(report: PlannerReport) -> Sequence[str]:
    """What was seen, what each policy wants, what comes of it, and why."""
    decision, settings = report.decision, report.settings
    advisory = ", advisory" if settings.advisory else ""
    lines = [
        f"decision {decision.number}, {report.age_s:.1f} s ago: {_outcome(decision, advisory=settings.advisory)}",
        f"  {settings.connector} connector, mode {settings.mode}, every {settings.interval_s:g} s{advisory}",
        "",
        f"  {'':10}{'requests/s':>12}{'prompt':>10}{'output':>10}{'TTFT ms':>11}{'ITL ms':>11}",
        f"  {'observed':10}{_traffic(decision.observed)}{_ms(decision.ttft_s)}{_ms(decision.itl_s)}",
        f"  {'forecast':10}{_traffic(decision.forecast)}{'':11}{'':11}",
        f"  {'aim':10}{'':12}{'':10}{'':10}{settings.ttft_ms:>11g}{settings.itl_ms:>11g}",
        "",
        f"  {_COLUMNS[0]:12}" + "".join(f"{name:>11}" for name in _COLUMNS[1:]),
    ]
    lines += [_role(role) for role in decision.roles] or ["  no workers are known"]
    lines += [f"  {role.role.value}: {reason}" for role in decision.roles for reason in role.reasons]
    lines += [f"  ! {problem}" for problem in decision.problems]
    return [line.rstrip() for line in lines]


def _outcome(decision: Decision, *, advisory: bool) -> str:
    if decision.held:
        return f"held, {decision.held}"
    actions = ", ".join(map(described, decision.actions))
    if not actions:
        return "no change"
    return f"would {actions}" if advisory else actions


def _traffic(traffic: Forecast | None) -> str:
    if traffic is None:
        return f"{'-':>12}{'-':>10}{'-':>10}"
    return f"{traffic.requests_per_s:>12.2f}{traffic.prompt_tokens:>10.0f}{traffic.output_tokens:>10.0f}"


def _ms(seconds: float | None) -> str:
    return f"{'-':>11}" if seconds is None else f"{seconds * 1000:>11.1f}"


def _role(role: RoleDecision) -> str:
    figures = (role.ready, role.current, role.throughput, role.load, role.wanted, role.target)
    return f"  {role.role.value:12}" + "".join(f"{'-' if figure is None else figure:>11}" for figure in figures)
