"""What the pods of a fleet say about it. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from dynamo.planner.connectors.kubernetes_messages import Pod, PodCondition

_ENDED = ("Succeeded", "Failed")  # phases: its replacement is another pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """How many of them are how far."""

    ready: int
    starting_s: tuple[float, ...]  # for how long each has not been ready, longest first
    draining: int  # told to end, which they may take terminationGracePeriodSeconds for

    @classmethod
    def of(cls, pods: Iterable[Pod], now: datetime) -> "Pods":
        """`now` by the clock of the API server, as the pods' times are."""
        living = [pod for pod in pods if pod.status.phase not in _ENDED]
        staying = [pod for pod in living if pod.metadata.deletion_timestamp is None]
        return cls(
            ready=sum(_is_ready(pod) for pod in staying),
            starting_s=tuple(sorted(_starting_s(staying, now), reverse=True)),
            draining=len(living) - len(staying),
        )


def _starting_s(pods: Iterable[Pod], now: datetime) -> Iterator[float]:
    for pod in pods:
        if not _is_ready(pod):
            condition = _readiness(pod)
            since = (condition.last_transition_time if condition else None) or pod.metadata.creation_timestamp or now
            yield max(0.0, (now - since).total_seconds())


def _is_ready(pod: Pod) -> bool:
    condition = _readiness(pod)
    return condition is not None and condition.status == "True"


def _readiness(pod: Pod) -> PodCondition | None:
    return next((condition for condition in pod.status.conditions if condition.type == "Ready"), None)
