"""Workers of one host: `dynamo serve`'s supervisor starts and ends them."""

from collections.abc import Mapping, Sequence

from dynamo.errors import DynamoError, InvalidRequestError, UnavailableError
from dynamo.planner.decision import Action
from dynamo.planner.decisions import DECISIONS_ENDPOINT, PLANNER_COMPONENT, PlannerReport
from dynamo.planner.observation import Fleet
from dynamo.planner.supervision import FLEETS_ENDPOINT, SCALE_ENDPOINT, SUPERVISOR_COMPONENT, SupervisedFleets
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.client import Client
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import EndpointId


class LocalConnector:
    """Asks the supervisor of a namespace, by the request plane."""

    def __init__(self, runtime: DistributedRuntime, namespace: str) -> None:
        fleets = EndpointId(namespace, SUPERVISOR_COMPONENT, FLEETS_ENDPOINT)
        self._namespace = namespace
        self._fleets = runtime.client(fleets, SupervisedFleets)
        self._scale = runtime.client(fleets.beside(SCALE_ENDPOINT), SupervisedFleets)
        self._planners = runtime.client(EndpointId(namespace, PLANNER_COMPONENT, DECISIONS_ENDPOINT), PlannerReport)
        self._said = SupervisedFleets(fleets=())

    @property
    def converts(self) -> bool:
        """What the supervisor has said last; False before it has."""
        return self._said.converts

    @property
    def problems(self) -> Sequence[str]:
        planners = len(self._planners.instance_ids())
        if planners < 2:
            return self._said.problems
        several = f"{planners} planners run in namespace {self._namespace!r}: those that act undo each other's work"
        return (*self._said.problems, several)

    async def fleets(self) -> Mapping[WorkerType, Fleet]:
        self._said = await self._ask(self._fleets, None)
        return dict(self._said.observed())

    async def apply(self, action: Action) -> None:
        await self._ask(self._scale, action)

    async def close(self) -> None:
        await self._fleets.close()
        await self._scale.close()
        await self._planners.close()

    async def _ask(self, client: Client, request: Action | None) -> SupervisedFleets:
        instances = client.instance_ids()
        if not instances:
            raise UnavailableError(f"no `dynamo serve` supervises workers in namespace {self._namespace!r}")
        if len(instances) > 1:
            raise UnavailableError(
                f"{len(instances)} of `dynamo serve` supervise workers in namespace {self._namespace!r}:"
                " give each a namespace and a planner of its own"
            )
        try:
            answer: SupervisedFleets = await client.ask(request, instances[0])
        except (InvalidRequestError, UnavailableError):
            raise
        except DynamoError as error:
            raise UnavailableError(f"the supervisor has not answered: {error}") from error
        return answer
