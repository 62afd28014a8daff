"""One deployment that all gentle tests share: a frontend, two mockers of one model and an echo of another."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from dynamo.testing import Program
from dynamo.testing.deployment import Deployment, deployment
from dynamo.testing.tiny_model import byte_level_files

from .served import ECHO, MOCK, until_served


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What a test may use but not break."""

    deployment: Deployment
    frontend: Program
    url: str
    openai: AsyncOpenAI


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a tokenizer and a chat template."""
    directory = tmp_path_factory.mktemp("tiny")
    for name, content in byte_level_files().items():
        (directory / name).write_bytes(content)
    return directory


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tiny_model: Path) -> AsyncIterator[Stack]:
    async with deployment() as started:
        (frontend, url), *_ = await asyncio.gather(
            started.frontend(),
            started.mocker(tiny_model, MOCK, "--speedup-ratio", "10", "--num-workers", "2"),
            started.echo(tiny_model, ECHO, "--delay-ms", "1"),
        )
        await until_served(url, 3)
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as openai:
            yield Stack(deployment=started, frontend=frontend, url=url, openai=openai)


@pytest_asyncio.fixture(loop_scope="session")
async def own() -> AsyncIterator[Deployment]:
    """An empty deployment, for tests that break things."""
    async with deployment() as started:
        yield started
