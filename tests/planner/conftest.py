"""A fleet that any test of the planner's shell can have."""

from collections.abc import AsyncIterator

import pytest

from .fleet import FakeFleet, fake_fleet


@pytest.fixture
async def fleet() -> AsyncIterator[FakeFleet]:
    async with fake_fleet() as made:
        yield made
