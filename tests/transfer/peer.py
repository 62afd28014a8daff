"""An agent of another process: registers memory and does what it is notified of. Its first line is its metadata."""

import asyncio
import base64
import sys

from dynamo.transfer import Agent, Region

PATTERN = bytes(i * 31 % 251 for i in range(251)) * 4096


async def main(size_bytes: int, backends: list[str]) -> None:
    async with Agent("far", backends) as agent:
        region = agent.allocate(size_bytes) if backends == ["shm"] else agent.register(bytearray(size_bytes))
        restore(region)
        print(base64.b64encode(agent.metadata()).decode(), flush=True)
        async for notification in agent.notifications():
            if notification.payload == b"deregister":
                agent.deregister(region)
            elif notification.payload.startswith(b"restore"):
                restore(region)
            print(notification.payload.decode(), flush=True)


def restore(region: Region) -> None:
    """Its first content, in pieces: the regions of some tests are large."""
    view = region.view()
    for begin in range(0, len(view), len(PATTERN)):
        part = view[begin : begin + len(PATTERN)]
        part[:] = PATTERN[: len(part)]


asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
