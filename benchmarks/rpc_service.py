"""`python -m benchmarks.rpc_service`: an endpoint whose replies have as many small items as the request asks for."""

from collections.abc import AsyncIterator

import uvloop

from dynamo.runtime import Context, DistributedRuntime, dynamo_worker
from dynamo.runtime.parent import follow_parent

ENDPOINT = "bench.backend.generate"


async def generate(request: dict[str, int], context: Context) -> AsyncIterator[dict[str, int]]:
    for i in range(request["items"]):
        yield {"i": i}


@dynamo_worker()
async def serve(runtime: DistributedRuntime) -> None:
    await runtime.endpoint(ENDPOINT).serve_endpoint(generate)


async def _main() -> None:
    follow_parent()
    await serve()


if __name__ == "__main__":
    uvloop.run(_main())
