"""A connector that does what a test says, and remembers what it was told."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dynamo.errors import DynamoError
from dynamo.planner.decision import Action
from dynamo.planner.observation import Fleet
from dynamo.protocols.model_card import WorkerType


@dataclass(slots=True)
class ScriptedConnector:
    """Never converts."""

    found: Mapping[WorkerType, Fleet] = field(default_factory=dict)
    applied: list[Action] = field(default_factory=list)
    problems: Sequence[str] = ()
    hangs: bool = False
    fails: DynamoError | None = None  # for both calls

    @property
    def converts(self) -> bool:
        return False

    async def fleets(self) -> Mapping[WorkerType, Fleet]:
        await self._trouble()
        return self.found

    async def apply(self, action: Action) -> None:
        await self._trouble()
        self.applied.append(action)

    async def close(self) -> None:
        """There is nothing to end."""

    async def _trouble(self) -> None:
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.fails is not None:
            raise self.fails
