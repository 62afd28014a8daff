"""What processes hold when nobody asks them anything: it must not be more after a run than before."""

import asyncio
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from dynamo.errors import DynamoError
from tests.e2e.load import Loads, loads
from tests.e2e.raw_http import get

from .fleet import Fleet, Frontend, Worker

_POLL_S = 0.2
IDLE_S = 30.0  # after which all must be over; a lease takes no longer either
GROWTH_MAX = 10  # of tasks and of descriptors: connections come and go


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Of one process at rest."""

    tasks: float
    descriptors: float
    requests: float


async def holdings(place: Frontend | Worker) -> Holdings:
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families((await get(place.metrics_url, "/metrics")).body.decode()):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return Holdings(
        tasks=sums["dynamo_event_loop_tasks"],
        descriptors=sums["process_open_fds"],
        requests=sums.get("dynamo_frontend_inflight_requests", 0) + sums.get("dynamo_frontend_queued_requests", 0),
    )


async def complaints(fleet: Fleet, before: dict[str, Holdings]) -> list[str]:
    """What is left of a run, in words. Waits for it to go."""
    found: list[str] = []
    for component in ("backend", "prefill"):
        async with loads(fleet, component=component) as asked:
            if (why := await _busy(asked)) is not None:
                found.append(f"{component} workers are not idle: {why}")
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(_complaint(place, before[place.name])) for place in fleet.places]
    return found + [text for task in asking if (text := task.result())]


async def _busy(asked: Loads) -> str | None:
    """Why they do not come to rest in time; None if they do."""
    why = "too much to do"
    try:
        async with asyncio.timeout(IDLE_S):
            while True:
                try:
                    await asked.until_idle(IDLE_S)
                except DynamoError as error:  # the entry of one that was killed lives for as long as its lease
                    why = str(error)
                    await asyncio.sleep(_POLL_S)
                else:
                    return None
    except TimeoutError:
        return why


async def _complaint(place: Frontend | Worker, before: Holdings) -> str:
    """Empty if it comes to hold no more than before."""
    try:
        async with asyncio.timeout(IDLE_S):
            while (now := await holdings(place)).requests or _growth(before, now) > GROWTH_MAX:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        return f"{place.name} holds {now}, {before} before"
    return ""


def _growth(before: Holdings, now: Holdings) -> float:
    return max(now.tasks - before.tasks, now.descriptors - before.descriptors)
