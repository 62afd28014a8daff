"""What starts and ends workers."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from dynamo.planner.decision import Action
from dynamo.planner.observation import Fleet
from dynamo.protocols.model_card import WorkerType


class Connector(Protocol):
    """Called by one task, one call at a time, each under a deadline of the caller."""

    @property
    def converts(self) -> bool:
        """Whether it carries out Convert."""
        ...

    @property
    def problems(self) -> Sequence[str]:
        """What is wrong at the moment although fleets() answers; each a short sentence."""
        ...

    async def fleets(self) -> Mapping[WorkerType, Fleet]:
        """The fleets that it can scale, without loads. Raises UnavailableError when it cannot tell now."""
        ...

    async def apply(self, action: Action) -> None:
        """Returns when the action is accepted, not when it has been carried out: fleets() shows how far it has come.

        Raises UnavailableError when it could not be told, InvalidRequestError when it refuses.
        """
        ...

    async def close(self) -> None: ...
