"""The ways between workers and routers that their tests go."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dynamo.runtime import RuntimeConfig
from dynamo.testing.nats_server import nats_server

DIRECT = ["mem+inproc", "file+tcp"]
ALL = [*DIRECT, "file+tcp+nats"]


@asynccontextmanager
async def planes(names: str, directory: Path) -> AsyncIterator[RuntimeConfig]:
    """The configuration of "discovery+request plane", or with "+nats" and a broker that runs meanwhile."""
    discovery, request_plane, *brokers = names.split("+")
    config = RuntimeConfig(
        discovery_backend=discovery, request_plane=request_plane, file_kv=str(directory / "discovery")
    )
    if brokers:
        async with nats_server(directory) as broker:
            yield dataclasses.replace(config, event_plane="nats", nats_server=broker.url)
    else:
        yield config
