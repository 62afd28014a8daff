import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def path() -> Iterator[Path]:
    """Of a socket; pytest's own directories may be too long for one."""
    with tempfile.TemporaryDirectory(prefix="dynamo-kvbm-") as directory:
        yield Path(directory) / "s"
