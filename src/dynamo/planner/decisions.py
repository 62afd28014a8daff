"""What the planner has decided lately, for whoever asks: `dynamo planner status` does."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator

import msgspec

from dynamo.planner.decision import Decision
from dynamo.runtime.component import Endpoint

PLANNER_COMPONENT = "planner"
DECISIONS_ENDPOINT = "decisions"  # of that component: asked with DecisionsRequest, it answers with PlannerReports
KEPT = 256


class DecisionsRequest(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Which decisions are wanted."""

    last: int = 1  # so many of those that were made, the newest last
    follow: bool = False  # and each that will be, until the caller closes the stream


class PlannerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner aims at, and how; as its flags say."""

    connector: str
    mode: str
    predictor: str
    advisory: bool
    ttft_ms: float
    itl_ms: float
    interval_s: float


class PlannerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One decision, to those who were not there."""

    decision: Decision
    age_s: float  # since it was made
    settings: PlannerSettings


class Decisions:
    """The last ones. A follower that is slow misses those that have been forgotten meanwhile."""

    def __init__(self, settings: PlannerSettings) -> None:
        self._settings = settings
        self._made: deque[tuple[Decision, float]] = deque(maxlen=KEPT)  # and when, monotonic
        self._news = asyncio.Event()  # set at the next decision, which leaves another in its place

    def add(self, decision: Decision) -> None:
        self._made.append((decision, time.monotonic()))
        self._news.set()
        self._news = asyncio.Event()

    async def serve(self, endpoint: Endpoint) -> None:
        """Until its runtime shuts down. Raises what Endpoint.start() raises."""
        await endpoint.start(self.report, request_type=DecisionsRequest)

    async def report(self, request: DecisionsRequest) -> AsyncIterator[PlannerReport]:
        """The endpoint's handler; where there is no decision yet, it waits for the first if it is to follow."""
        made = list(self._made)
        seen = made[-1][0].number if made else 0
        for decision, made_s in made[-request.last :] if request.last > 0 else []:
            yield self._report(decision, made_s)
        while request.follow:
            news = self._news
            for decision, made_s in [made for made in self._made if made[0].number > seen]:
                seen = decision.number
                yield self._report(decision, made_s)
            await news.wait()

    def _report(self, decision: Decision, made_s: float) -> PlannerReport:
        return PlannerReport(decision=decision, age_s=time.monotonic() - made_s, settings=self._settings)
