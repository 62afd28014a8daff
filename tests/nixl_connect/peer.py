"""The other worker, in upstream's manner. Arguments: what it does, and for read and write the other side's metadata."""

import asyncio
import sys

import numpy as np

from dynamo.nixl_connect import Connector, Descriptor, RdmaMetadata


async def main(action: str, metadata: str = "") -> None:
    connector = Connector()
    await connector.initialize()
    numbers, zeros = np.arange(1000, dtype=np.int64), np.zeros(1000, dtype=np.int64)
    match action:
        case "read":
            remote = RdmaMetadata.model_validate_json(metadata)
            with await connector.begin_read(remote, Descriptor((zeros, "cpu"))) as reading:
                await reading.wait_for_completion()
            print("read", zeros.sum(), str(reading.status), flush=True)
        case "write":
            remote = RdmaMetadata.model_validate_json(metadata)
            with await connector.begin_write(Descriptor((numbers, "cpu")), remote) as writing:
                await writing.wait_for_completion()
            print("written", str(writing.status), flush=True)
        case "readable":
            with connector.create_readable(Descriptor((numbers, "cpu"))) as readable:
                print(readable.metadata().model_dump_json(), flush=True)
                await readable.wait_for_completion()
            print("was read", str(readable.status), flush=True)
        case "writable":
            with connector.create_writable([Descriptor((half, "cpu")) for half in (zeros[:500], zeros[500:])]) as made:
                print(made.metadata().model_dump_json(), flush=True)
                await made.wait_for_completion()
            print("was written", zeros.sum(), str(made.status), flush=True)
    await connector.close()


asyncio.run(main(*sys.argv[1:]))
