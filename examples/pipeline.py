"""Two stages: `splitter` cuts a text into words and has `shouter` treat each, on whichever worker is free.

    python examples/pipeline.py shouter &      # as many as you like
    python examples/pipeline.py splitter &
    python examples/pipeline.py client "so long, and thanks for all the fish"

The context goes along, so that a client which leaves early stops both stages.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from dynamo.runtime import Client, Context, DistributedRuntime, dynamo_worker


async def shout(request: str) -> AsyncIterator[str]:
    yield request.upper()


class Splitter:
    def __init__(self, shouters: Client) -> None:
        self._shouters = shouters

    async def generate(self, request: str, context: Context) -> AsyncIterator[str]:
        for word in request.split():
            if context.is_stopped():
                return
            async for loud_word in await self._shouters.round_robin(word, annotated=False, context=context):
                yield loud_word


@dynamo_worker()
async def shouter(runtime: DistributedRuntime) -> None:
    await runtime.endpoint("pipeline.shouter.generate").serve_endpoint(shout)


@dynamo_worker()
async def splitter(runtime: DistributedRuntime) -> None:
    shouters = await runtime.endpoint("pipeline.shouter.generate").client()
    await shouters.wait_for_instances()
    await runtime.endpoint("pipeline.splitter.generate").serve_endpoint(Splitter(shouters).generate)


@dynamo_worker()
async def client(runtime: DistributedRuntime, text: str) -> None:
    splitters = await runtime.endpoint("pipeline.splitter.generate").client()
    await splitters.wait_for_instances()
    async for word in await splitters.generate(text, annotated=False):
        print(word)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["shouter"]:
            asyncio.run(shouter())
        case ["splitter"]:
            asyncio.run(splitter())
        case ["client", text]:
            asyncio.run(client(text))
        case _:
            sys.exit(__doc__)
