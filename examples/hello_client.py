"""Calls the worker of examples/hello_server.py, which may be started before or after."""

import asyncio

from dynamo.runtime import DistributedRuntime, dynamo_worker


@dynamo_worker()
async def main(runtime: DistributedRuntime) -> None:
    client = await runtime.namespace("dynamo").component("backend").endpoint("generate").client()
    await client.wait_for_instances()
    async for item in await client.generate("hello world"):
        print(item.data())


if __name__ == "__main__":
    asyncio.run(main())
