"""What is done to a fleet, and when: a schedule that follows from a seed."""

import random
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Of a fault."""

    KILL_WORKER = "worker killed"
    FREEZE_WORKER = "worker stopped and continued"
    DRAIN_WORKER = "worker told to end"
    CUT = "connections of a worker cut"
    DELAY = "connections of a worker delayed"
    WIPE_DISCOVERY = "discovery directory wiped"
    RESTART_ETCD = "etcd killed and started"
    RESTART_NATS = "NATS killed and started"
    DRAIN_FRONTEND = "frontend told to end"
    KILL_FRONTEND = "frontend killed"


_ANYWHERE = (
    *(Kind.KILL_WORKER, Kind.KILL_WORKER, Kind.FREEZE_WORKER, Kind.FREEZE_WORKER, Kind.DRAIN_WORKER, Kind.CUT),
    *(Kind.DELAY, Kind.DRAIN_FRONTEND, Kind.KILL_FRONTEND),
)  # the first ones twice as often
ON_ONE_HOST = (*_ANYWHERE, Kind.WIPE_DISCOVERY)
WITH_BROKERS = (*_ANYWHERE, Kind.RESTART_ETCD, Kind.RESTART_NATS)
_PAUSE_S = (0.5, 3.5)  # from the beginning of one fault to that of the next
_LASTS_S = (0.5, 8.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One of them."""

    at_s: float  # from the beginning of the run
    kind: Kind
    lasts_s: float  # where it has a duration of its own
    whom: float  # which of those that there are: from 0 to 1, exclusive

    def one_of(self, number: int) -> int:
        return int(self.whom * number)


def schedule(seed: int, seconds: float, kinds: tuple[Kind, ...]) -> list[Fault]:
    """As many as there is time for; each kind has been there once before any comes by chance."""
    rng = random.Random(seed)
    coming = rng.sample(sorted(set(kinds)), len(set(kinds)))
    faults: list[Fault] = []
    at_s = rng.uniform(*_PAUSE_S)
    while at_s < seconds:
        kind = coming.pop() if coming else rng.choice(kinds)
        faults.append(Fault(at_s=at_s, kind=kind, lasts_s=rng.uniform(*_LASTS_S), whom=rng.random()))
        at_s += rng.uniform(*_PAUSE_S)
    return faults
