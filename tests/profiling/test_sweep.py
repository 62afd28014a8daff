"""All points within a time."""

import asyncio

import pytest

from dynamo.errors import UnavailableError
from dynamo.profiling.stream import Server
from dynamo.profiling.sweep import Grid, Sweep
from dynamo.testing import within

GRID = Grid(prompt_tokens=[64], context_tokens=[64], concurrency=[1])


async def test_a_server_that_never_answers() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until who asks gives up
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        sweep = Sweep(Server(url=url, model="m"), 0.05, lambda _: None)
        with pytest.raises(UnavailableError, match=r"has not answered within 0\.05 s"):
            await within(sweep.run(GRID))
