"""How a worker tells how busy it is: who asks gets an answer, and where there is an event plane it tells all."""

from collections.abc import AsyncIterator, Callable

from dynamo.protocols.load import LOAD_ENDPOINT, WorkerLoad
from dynamo.router.load_watcher import INTERVAL_S
from dynamo.runtime.codec import encode_payload
from dynamo.runtime.component import Endpoint
from dynamo.runtime.event_plane.base import Part


async def serve_load(endpoint: Endpoint, load: Callable[[], list[WorkerLoad]]) -> Part:
    """Serves `load` beside `endpoint`, and tells it until what is returned is closed or the runtime shuts down.

    Raises what Endpoint.start() raises. `load` gives that of each data-parallel rank at the moment. It changes with
    every token, so it is not told at a change but as often as routers would ask.
    """

    async def answer(request: object) -> AsyncIterator[list[WorkerLoad]]:
        yield load()

    runtime, endpoint_id = endpoint.runtime, endpoint.id.beside(LOAD_ENDPOINT)
    await Endpoint(runtime, endpoint_id).start(answer)
    return runtime.event_plane.repeat(endpoint_id, runtime.instance_id, lambda: encode_payload(load()), INTERVAL_S)
