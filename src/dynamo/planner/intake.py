"""What of an observation makes sense. Pure."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec

from dynamo.planner.config import WORKERS_MAX
from dynamo.planner.observation import Fleet, Observation, Traffic
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType

_AMOUNT_MAX = 1e15  # more of anything is a mistake, and less never overflows when two are multiplied


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """An observation of which every figure is finite, at least 0 and of a sensible size."""

    now_s: float
    traffic: Traffic | None
    fleets: Mapping[WorkerType, Fleet] | None
    problems: tuple[str, ...]  # the observation's, and what was left out of it
    held: str  # why nothing may be concluded from it; "": something may


class Gate:
    """Lets observations in, one after the other."""

    def __init__(self) -> None:
        self._now_s: float | None = None

    def check(self, observation: Observation) -> Intake:
        """Never raises; what it leaves out is named."""
        clock = self._clock_problem(observation.now_s)
        traffic, traffic_problems = _traffic(observation.traffic)
        fleets, fleet_problems = _fleets(observation.fleets)
        fleet_missing = "" if observation.fleets is not None else "the connector did not answer"
        missing = "" if observation.traffic is not None else "there are no figures about the traffic"
        reasons = (clock, fleet_missing, *fleet_problems[:1] * (fleets is None), missing, *traffic_problems[:1])
        usable = traffic is not None and fleets is not None and not clock
        return Intake(
            now_s=self._now_s or 0.0,
            traffic=None if clock else traffic,
            fleets=None if clock else fleets,
            problems=(*observation.problems, *filter(None, [clock]), *fleet_problems, *traffic_problems),
            held="" if usable else next(filter(None, reasons)),
        )

    def _clock_problem(self, now_s: float) -> str:
        """A clock that was set back is believed from the next observation on, so that one mistake is not for ever."""
        if not math.isfinite(now_s):
            return f"the observation's time is {now_s}"
        last_s, self._now_s = self._now_s, now_s
        if last_s is not None and now_s <= last_s:
            return f"the observation is not newer than the last: {now_s:g} s after {last_s:g} s"
        return ""


def _is_amount(value: float) -> bool:
    return 0 <= value <= _AMOUNT_MAX  # false for NaN


def _traffic(traffic: Traffic | None) -> tuple[Traffic | None, list[str]]:
    if traffic is None:
        return None, []
    figures = {
        "requests": traffic.requests,
        "prompt tokens": traffic.prompt_tokens,
        "cached tokens": traffic.cached_tokens,
        "output tokens": traffic.output_tokens,
        "TTFT": traffic.ttft_s,
        "ITL": traffic.itl_s,
    }
    wrong = [
        f"{value:g} makes no sense as the traffic's {name}"
        for name, value in figures.items()
        if not _is_amount(value or 0)
    ]
    if not (_is_amount(traffic.duration_s) and traffic.duration_s > 0):
        wrong.append(f"traffic of {traffic.duration_s:g} s makes no sense")
    if wrong:
        return None, wrong
    prompt, cached = traffic.prompt_tokens, traffic.cached_tokens
    if prompt is not None and cached is not None and cached > prompt:  # told at different times: not a mistake
        return replace(traffic, cached_tokens=prompt), []
    return traffic, []


def _fleets(fleets: Mapping[WorkerType, Fleet] | None) -> tuple[Mapping[WorkerType, Fleet] | None, list[str]]:
    if fleets is None:
        return None, []
    wrong = [*_mix_problems(fleets), *(problem for role, fleet in fleets.items() for problem in _problems(role, fleet))]
    if wrong:
        return None, wrong
    checked: dict[WorkerType, Fleet] = {}
    problems: list[str] = []
    for role in sorted(fleets, reverse=True):  # prefill, decode
        fleet = fleets[role]
        if fleet.loads is None:
            checked[role] = fleet
            continue
        loads = {name: load for name, load in fleet.loads.items() if _is_load(load)}
        problems += [f"{role}: the load of {name} makes no sense" for name in fleet.loads if name not in loads]
        checked[role] = replace(fleet, loads=loads)
    return checked, problems


def _mix_problems(fleets: Mapping[WorkerType, Fleet]) -> Iterator[str]:
    if not fleets:
        yield "the connector has no fleet"
    if WorkerType.Aggregated in fleets and len(fleets) > 1:
        yield "there are workers that do all of a request beside others that do a part"


def _problems(role: WorkerType, fleet: Fleet) -> Iterator[str]:
    counts = {"desired": fleet.desired, "ready": fleet.ready, "draining": fleet.draining}
    for name, count in counts.items():
        if not 0 <= count <= WORKERS_MAX:
            yield f"{role}: {count} workers are {name}"
    if not all(map(_is_amount, fleet.starting_s)):
        yield f"{role}: a worker has been starting for no sensible time"


def _is_load(load: WorkerLoad) -> bool:
    if not all(_is_amount(figure or 0) for figure in msgspec.structs.astuple(load)):
        return False
    return load.kv_used_blocks <= load.kv_total_blocks or not load.kv_total_blocks
