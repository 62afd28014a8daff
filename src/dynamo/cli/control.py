"""The endpoints by which a planner looks at the workers of `dynamo serve`, and changes how many there are."""

from collections.abc import AsyncIterator

from dynamo.cli.fleets import Fleets
from dynamo.planner.decision import Action
from dynamo.planner.supervision import FLEETS_ENDPOINT, SCALE_ENDPOINT, SUPERVISOR_COMPONENT, SupervisedFleets
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import EndpointId


async def serve_control(runtime: DistributedRuntime, namespace: str, fleets: Fleets) -> None:
    """Serves them until the runtime shuts down; returns at once. ConfigError when they cannot be announced."""
    endpoint = EndpointId(namespace, SUPERVISOR_COMPONENT, FLEETS_ENDPOINT)

    async def state(request: None) -> AsyncIterator[SupervisedFleets]:
        yield fleets.state()

    async def scale(action: Action) -> AsyncIterator[SupervisedFleets]:
        fleets.apply(action)
        yield fleets.state()

    await runtime.endpoint(str(endpoint)).start(state, request_type=None)
    await runtime.endpoint(str(endpoint.beside(SCALE_ENDPOINT))).start(scale, request_type=Action)
