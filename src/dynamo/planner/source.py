"""All that is observed for one decision."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from dynamo.errors import DynamoError
from dynamo.planner.connectors.base import Connector
from dynamo.planner.load_source import Loads
from dynamo.planner.observation import Fleet, Observation, Traffic
from dynamo.protocols.model_card import WorkerType

T = TypeVar("T")


class TrafficSource(Protocol):
    """Where the traffic is known."""

    @property
    def problems(self) -> Sequence[str]:
        """What is wrong with the traffic although traffic() has told it; each a short sentence."""
        ...

    async def traffic(self) -> Traffic:
        """Since the last call. Raises UnavailableError when it is not known."""
        ...

    async def close(self) -> None: ...


class WorkerLoads(Protocol):
    """Where the workers' loads are known."""

    def loads(self) -> Loads: ...


class Source:
    """Asks all at once; what is not there in time is missing."""

    def __init__(
        self,
        traffic: TrafficSource,
        loads: WorkerLoads,
        connector: Connector,
        *,
        traffic_timeout_s: float,
        connector_timeout_s: float,
    ) -> None:
        self._traffic = traffic
        self._loads = loads
        self._connector = connector
        self._traffic_timeout_s = traffic_timeout_s
        self._connector_timeout_s = connector_timeout_s

    async def observe(self, problems: Iterable[str] = ()) -> Observation:
        """`problems` are those that are known already."""
        found = list(problems)
        traffic, fleets = await asyncio.gather(
            _in_time(self._traffic.traffic, self._traffic_timeout_s, "traffic", found),
            _in_time(self._connector.fleets, self._connector_timeout_s, "workers", found),
        )
        loads = self._loads.loads()
        if traffic is not None:
            found += self._traffic.problems
        found += [*loads.problems, *self._connector.problems]
        return Observation(
            now_s=time.monotonic(),
            traffic=traffic,
            fleets=None if fleets is None else _with_loads(fleets, loads),
            problems=tuple(dict.fromkeys(found)),
        )


async def _in_time(work: Callable[[], Awaitable[T]], timeout_s: float, what: str, problems: list[str]) -> T | None:
    """None, and one more problem, when it fails or takes longer."""
    try:
        async with asyncio.timeout(timeout_s) as timer:
            return await work()
    except DynamoError as error:
        problems.append(f"{what}: {error}")
    except TimeoutError as error:
        problems.append(f"{what}: {f'no answer within {timeout_s:g} s' if timer.expired() else error}")
    return None


def _with_loads(fleets: Mapping[WorkerType, Fleet], loads: Loads) -> Mapping[WorkerType, Fleet]:
    return {role: replace(fleet, loads=loads.by_role.get(role, {})) for role, fleet in fleets.items()}
