"""Two agents, and blocks that one reads from the other's memory. docs/transfer.md tells more."""

import asyncio
from array import array

from dynamo.transfer import Agent, Blocks


async def main() -> None:
    async with Agent("prefill") as prefill, Agent("decode") as decode:  # two processes, as a rule
        cache = prefill.register(array("I", range(1024)))  # anything with the buffer protocol, or a torch tensor
        offer = cache.blocks(offsets=[0, 2048], size_bytes=512).encode()  # two blocks of it, as bytes

        own = decode.register(bytearray(4096))
        decode.add_peer(prefill.metadata())
        transfer = decode.read(own.blocks([1024, 0], 512), Blocks.decode(offer), timeout_s=5)
        await transfer
        print(transfer.backend, transfer.done_bytes, own.view()[1024:1028].tobytes())
        await decode.notify("prefill", b"done with your blocks")


asyncio.run(main())
