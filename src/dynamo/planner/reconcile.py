"""What has become of what was asked for: changes by others, orders not carried out, workers that are lost. Pure."""

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

from dynamo.planner.observation import Fleet
from dynamo.protocols.model_card import WorkerType

_MISSING_TICKS = 2  # one may have seen a worker between its end and its successor's start
_ORDERS_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One role's fleet, compared with what the planner knows of it."""

    changed_from: int | None  # somebody else has changed the desired number, which was this
    stuck: int  # workers that have been starting for too long
    draining: int  # that are waited for: none once they have been ending for too long
    ordered: int  # what was asked for last, or without an order that is still to show, what is desired
    held: int  # workers that have their GPUs, or may get them by what has been asked for already
    settled: bool  # nobody starts or is waited for to end, and all orders show
    ask_again: bool  # though the number may be right: workers are lost, or an order may still be carried out
    problems: tuple[str, ...]


class Ledger:
    """What one role's connector was asked for, and has not shown yet.

    It shows an order when the fleet's desired number is that of the order. Until then, or until `start_timeout_s` after
    it was last given, an order may be carried out at any time.
    """

    def __init__(self, role: WorkerType, start_timeout_s: float) -> None:
        self._role = role
        self._start_timeout_s = start_timeout_s
        self._seen: int | None = None  # desired, when last observed
        self._orders: deque[tuple[float, int]] = deque(maxlen=_ORDERS_MAX)
        self._missing_ticks = 0
        self._draining_since_s: float | None = None

    def compare(self, fleet: Fleet, now_s: float) -> Standing:
        """At each observation that has fleets."""
        problems: list[str] = []
        changed_from = self._follow(fleet.desired, now_s)
        if changed_from is not None:
            problems.append(f"{self._role}: somebody changed {changed_from} to {fleet.desired}")
        if self._orders and self._orders[-1][1] != fleet.desired:
            problems.append(f"{self._role}: {self._orders[-1][1]} were asked for, it is still {fleet.desired}")
        stuck = sum(started_s > self._start_timeout_s for started_s in fleet.starting_s)
        if stuck:
            problems.append(f"{self._role}: {stuck} not ready after {self._start_timeout_s:g} s")
        draining = fleet.draining
        if self._drains_for_s(fleet, now_s) >= self._start_timeout_s:
            problems.append(f"{self._role}: {draining} have not ended within {self._start_timeout_s:g} s")
            draining = 0
        there = fleet.ready + len(fleet.starting_s)
        self._missing_ticks = self._missing_ticks + 1 if there < fleet.desired else 0
        lost = self._missing_ticks >= _MISSING_TICKS
        if lost:
            problems.append(f"{self._role}: {fleet.desired - there} of {fleet.desired} are neither ready nor starting")
        return Standing(
            changed_from=changed_from,
            stuck=min(stuck, fleet.desired),
            draining=draining,
            ordered=self._orders[-1][1] if self._orders else fleet.desired,
            held=max(fleet.desired, there) + self._further(fleet.desired) + fleet.draining,
            settled=not (self._orders or draining or fleet.starting_s or there < fleet.desired),
            ask_again=lost or bool(self._orders),
            problems=tuple(problems),
        )

    def _drains_for_s(self, fleet: Fleet, now_s: float) -> float:
        """For how long there has always been somebody who drains."""
        if not fleet.draining:
            self._draining_since_s = None
            return 0.0
        if self._draining_since_s is None or now_s < self._draining_since_s:  # the clock was set back
            self._draining_since_s = now_s
        return now_s - self._draining_since_s

    def _further(self, desired: int) -> int:
        """Workers that start when the orders are carried out, one after the other; who ends by them may still drain."""
        numbers = [desired, *(workers for _, workers in self._orders)]
        return sum(max(0, after - before) for before, after in pairwise(numbers))

    def ordered(self, workers: int, now_s: float) -> None:
        """So many are being asked for."""
        if self._orders and self._orders[-1][1] == workers:
            self._orders.pop()
        if self._orders or workers != self._seen:
            self._orders.append((now_s, workers))

    def _follow(self, desired: int, now_s: float) -> int | None:
        """Takes note of the desired number; what it was if somebody else has changed it."""
        orders = self._orders
        seen, self._seen = self._seen, desired
        if desired != seen and desired in (workers for _, workers in orders):
            while orders.popleft()[1] != desired:
                pass
            return None
        if seen is not None and desired != seen:
            orders.clear()
            return seen
        while orders and not 0 <= now_s - orders[0][0] < self._start_timeout_s:
            orders.popleft()
        return None
