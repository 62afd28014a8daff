"""Two agents that the kernel keeps from each other's memory, as containers do: first `far`, then `near METADATA`."""

import asyncio
import base64
import ctypes
import os
import sys

from dynamo.transfer import Agent, Blocks

PR_SET_DUMPABLE, PR_CAPBSET_DROP = 4, 24
CAP_SYS_PTRACE = 19
prctl = ctypes.CDLL(None).prctl


async def far() -> None:
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    async with Agent("far") as agent:
        shared, own = agent.allocate(6), agent.register(b"own...")
        shared.view()[:] = b"shared"
        print(base64.b64encode(agent.metadata()).decode(), flush=True)
        async for _ in agent.notifications():
            del own
            return


async def near(metadata: bytes) -> None:
    async with Agent("near") as agent:
        agent.add_peer(metadata)
        region = agent.register(bytearray(6))
        for number in (0, 1):
            transfer = agent.read(region.all(), Blocks.of("far", number, [0], [6]))
            await transfer
            print(transfer.backend, bytes(region.view()).decode(), flush=True)
        await agent.notify("far", b"")


if sys.argv[1] == "far":
    asyncio.run(far())
elif sys.argv[-1] == "dropped":
    asyncio.run(near(base64.b64decode(sys.argv[2])))
else:
    prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0)  # fails for those who don't have it anyway
    os.execv(sys.executable, [sys.executable, *sys.argv, "dropped"])
