"""A model that needs no download, and an environment that keeps everything in one directory."""

from pathlib import Path

import pytest

from dynamo.testing.tiny_model import byte_level_files


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
def environ(tmp_path: Path, discovery: Path) -> dict[str, str]:
    return {"DYN_FILE_KV": str(discovery), "DYN_CACHE_DIR": str(tmp_path / "cache")}
