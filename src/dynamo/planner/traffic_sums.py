"""From what frontends count to what was asked for in between. Pure."""

import math
from collections.abc import Iterable

from dynamo.planner.observation import Traffic
from dynamo.protocols.traffic import ModelTraffic

_FIGURES = tuple(name for name in ModelTraffic.__struct_fields__ if name not in ("model", "uptime_s"))


def summed(parts: Iterable[ModelTraffic]) -> ModelTraffic:
    """All of them together, such as a frontend's models; the uptime is the longest."""
    total = ModelTraffic(model="")
    for part in parts:
        total.uptime_s = max(total.uptime_s, part.uptime_s)
        for name in _FIGURES:
            setattr(total, name, getattr(total, name) + getattr(part, name))
    return total


def is_sane(counted: ModelTraffic) -> bool:
    """Whether these can be what somebody has counted."""
    values = (counted.uptime_s, *(getattr(counted, name) for name in _FIGURES))
    return all(math.isfinite(value) and value >= 0 for value in values)


def difference(before: ModelTraffic, after: ModelTraffic) -> ModelTraffic:
    """What has been added since; all of it if something has become less, since then it was begun anew."""
    gone_back = any(getattr(after, name) < getattr(before, name) for name in _FIGURES)
    if gone_back:
        return after
    added = ModelTraffic(model=after.model, uptime_s=after.uptime_s)
    for name in _FIGURES:
        setattr(added, name, getattr(after, name) - getattr(before, name))
    return added


def as_traffic(added: ModelTraffic, *, requests: float, duration_s: float) -> Traffic:
    """`requests` came in that time; the means are those of `added`."""
    return Traffic(
        duration_s=duration_s,
        requests=requests,
        prompt_tokens=_mean(added.prompt_tokens, added.prompts),
        cached_tokens=_mean(added.cached_tokens, added.prompts),
        output_tokens=_mean(added.output_tokens, added.finished_requests),
        ttft_s=_mean(added.ttft_s, added.first_tokens),
        itl_s=_mean(added.itl_s, added.gaps),
    )


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None
