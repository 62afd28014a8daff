"""Giving a request to a worker: what every router mode does; and the modes that look at nothing but the workers."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from dynamo.errors import InvalidRequestError
from dynamo.protocols.generation import PreprocessedRequest, WorkerId
from dynamo.router.routing import Prospect as Prospect
from dynamo.router.selection import RouterMode, make_selector
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver

TARGET_FIELD = "nvext.backend_instance_id"  # the request's field that names a worker


class Placement(Protocol):
    """A request's stay with the worker that it was given."""

    worker: WorkerId
    dp_rank: int | None  # which the worker is told to use; None: as the request says

    def watched(self, deliver: Deliver[Any]) -> Deliver[Any]:
        """`deliver`, with an eye on the outputs that pass. Called once."""
        ...

    def end(self) -> None:
        """The worker is done with the request, or was given up. Called once."""
        ...


class Placer(Protocol):
    """Gives requests to workers and keeps account of it."""

    async def place(
        self,
        request: PreprocessedRequest | None,
        context: Context,
        instances: Sequence[int],
        target: WorkerId | None,
    ) -> Placement:
        """Chooses one of `instances` (ascending, not empty), or takes `target`, which is one of them.

        Where the request waits and none of them was named, one that comes meanwhile is as good as they are.
        `request` is None where its tokens are not known. May wait; raises a DynamoError when it cannot be served.
        """
        ...

    async def prospect(self, request: PreprocessedRequest, instances: Sequence[int]) -> Prospect | None:
        """What would come of place() with one of `instances`, without consequences; None where that is not known."""
        ...

    async def close(self) -> None:
        """Ends what it has begun. Requests under way go on."""
        ...


class SelectorPlacer:
    """The modes that know of each worker only how many requests it has in flight."""

    def __init__(self, mode: RouterMode, rng: random.Random) -> None:
        self._mode = mode
        self._selector = make_selector(mode, rng)
        self.in_flight: Counter[int] = Counter()  # by instance; those with none are left out

    async def place(
        self,
        request: PreprocessedRequest | None,
        context: Context,
        instances: Sequence[int],
        target: WorkerId | None,
    ) -> "CountedPlacement":
        if target is None:
            if self._mode is RouterMode.DIRECT:
                raise InvalidRequestError(
                    f"the router is in direct mode: name a worker in {TARGET_FIELD}", param=TARGET_FIELD
                )
            target = WorkerId(self._selector.pick(instances, self.in_flight))
        return CountedPlacement(target, self.in_flight)

    async def prospect(self, request: PreprocessedRequest, instances: Sequence[int]) -> None:
        """Nothing is known of what workers have cached."""

    async def close(self) -> None:
        """There is nothing to end."""


class CountedPlacement:
    """Counts as in flight until its end."""

    __slots__ = ("_in_flight", "dp_rank", "worker")

    def __init__(self, worker: WorkerId, in_flight: Counter[int]) -> None:
        self.worker = worker
        self.dp_rank: int | None = None
        self._in_flight = in_flight
        in_flight[worker.instance_id] += 1

    def watched(self, deliver: Deliver[Any]) -> Deliver[Any]:
        return deliver

    def end(self) -> None:
        instance_id = self.worker.instance_id
        self._in_flight[instance_id] -= 1
        if not self._in_flight[instance_id]:
            del self._in_flight[instance_id]  # instances come and go
