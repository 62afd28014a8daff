"""An agent of another process: registers a buffer and does what it is notified of. Its first line is its metadata."""

import asyncio
import base64
import sys

from dynamo.transfer import Agent, Region


async def main(size_bytes: int, backends: list[str]) -> None:
    async with Agent("far", backends) as agent:
        memory = bytearray(i * 31 % 251 for i in range(251)) * (size_bytes // 251 + 1)
        regions: list[Region] = [agent.register(memory)]
        print(base64.b64encode(agent.metadata()).decode(), flush=True)
        async for notification in agent.notifications():
            if notification.payload == b"deregister":
                agent.deregister(regions.pop())
            print(notification.payload.decode(), flush=True)


asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
