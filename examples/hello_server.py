"""A worker that serves one endpoint. Start it, then examples/hello_client.py in another terminal."""

import asyncio
from collections.abc import AsyncIterator

from dynamo.runtime import DistributedRuntime, dynamo_worker


async def handler(request: str) -> AsyncIterator[str]:
    for word in request.split():
        yield word


@dynamo_worker()
async def worker(runtime: DistributedRuntime) -> None:
    endpoint = runtime.endpoint("dynamo.backend.generate")
    await endpoint.serve_endpoint(handler)


if __name__ == "__main__":
    asyncio.run(worker())
