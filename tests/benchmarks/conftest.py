"""A model that needs no download."""

from pathlib import Path

import pytest

from dynamo.testing.tiny_model import byte_level_files


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    for name, content in byte_level_files().items():
        (directory / name).write_bytes(content)
    return directory
