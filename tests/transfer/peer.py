"""An agent of another process: registers memory and does what it is notified of. Its first line is its metadata."""

import asyncio
import base64
import sys

from dynamo.transfer import Agent, Region


async def main(size_bytes: int, backends: list[str]) -> None:
    async with Agent("far", backends) as agent:
        memory = bytearray(i * 31 % 251 for i in range(251)) * (size_bytes // 251 + 1)
        regions = [registered(agent, memory, backends)]
        del memory
        print(base64.b64encode(agent.metadata()).decode(), flush=True)
        async for notification in agent.notifications():
            if notification.payload == b"deregister":
                agent.deregister(regions.pop())
            print(notification.payload.decode(), flush=True)


def registered(agent: Agent, memory: bytearray, backends: list[str]) -> Region:
    if backends != ["shm"]:
        return agent.register(memory)
    region = agent.allocate(len(memory))
    region.view()[:] = memory
    return region


asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
