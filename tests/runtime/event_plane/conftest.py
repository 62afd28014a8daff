"""A broker for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dynamo.testing.nats_server import NatsServer, nats_server


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as server:
        yield server
