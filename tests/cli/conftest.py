"""A model that needs no download, and an environment that keeps everything in one directory."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamo.testing.tiny_model import byte_level_files

from .processes import processes_with


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    directory.mkdir()
    for name, content in byte_level_files().items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def discovery(tmp_path: Path) -> Path:
    return tmp_path / "discovery"


@pytest.fixture
def environ(tmp_path: Path, discovery: Path) -> Iterator[dict[str, str]]:
    """What a failed test leaves running is found by this environment and killed."""
    yield {"DYN_FILE_KV": str(discovery), "DYN_CACHE_DIR": str(tmp_path / "cache")}
    for pid in processes_with(f"DYN_FILE_KV={discovery}"):
        os.kill(pid, signal.SIGKILL)
