"""A decision as one line of the log, and an action in words. Pure."""

from dynamo.planner.decision import Action, Convert, Decision, Forecast, RoleDecision, Scale


def explain(decision: Decision) -> str:
    """All that led to it: held or not, what was observed and forecast, each role's way, what is to be done."""
    parts = [f"decision {decision.number}"]
    if decision.held:
        parts.append(f"held, {decision.held}")
    if decision.observed is not None:
        parts.append(f"observed {_traffic(decision.observed)}{_latencies(decision)}")
    if decision.forecast is not None:
        parts.append(f"forecast {_traffic(decision.forecast)}")
    parts += map(_role, decision.roles)
    if decision.problems:
        parts.append(f"problems: {', '.join(decision.problems)}")
    parts.append(f"actions: {', '.join(map(described, decision.actions)) or 'none'}")
    return " | ".join(" ".join(part.split()) for part in parts)


def described(action: Action) -> str:
    """What is to be done, as an order."""
    match action:
        case Scale(role=role, workers=workers):
            return f"scale {role.value} to {workers}"
        case Convert(source=source, destination=destination, workers=workers):
            return f"turn {workers} {source.value} into {destination.value}"


def _traffic(traffic: Forecast) -> str:
    tokens = f"{traffic.prompt_tokens:.0f}+{traffic.output_tokens:.0f} tokens"
    return f"{traffic.requests_per_s:.3g} req/s of {tokens}"


def _latencies(decision: Decision) -> str:
    ttft = "" if decision.ttft_s is None else f", TTFT {decision.ttft_s:.3g} s"
    itl = "" if decision.itl_s is None else f", ITL {decision.itl_s * 1000:.3g} ms"
    return ttft + itl


def _role(role: RoleDecision) -> str:
    why = f" ({'; '.join(role.reasons)})" if role.reasons else ""
    return f"{role.role} {role.current} ({role.ready} ready) -> {role.target}{why}"
