"""Runtimes in one process that find and call each other."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime, SharedParts
from dynamo.testing import within

NewRuntime = Callable[[], DistributedRuntime]


@pytest.fixture(params=["mem+inproc", "file+tcp"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> RuntimeConfig:
    discovery, plane = request.param.split("+")
    return RuntimeConfig(
        discovery_backend=discovery,
        request_plane=plane,
        file_kv=str(tmp_path / "discovery"),
        shutdown_timeout_s=5.0,
    )


@pytest.fixture
async def new_runtime(config: RuntimeConfig) -> AsyncIterator[NewRuntime]:
    """Makes runtimes that see each other; closed at the end."""
    shared = SharedParts()
    made: list[DistributedRuntime] = []

    def new() -> DistributedRuntime:
        parts = dataclasses.replace(shared, registry=SharedParts().registry)  # as in a process of its own
        made.append(DistributedRuntime(config=config, shared=parts))
        return made[-1]

    yield new
    await within(asyncio.gather(*(runtime.close(graceful=False) for runtime in made)))
