"""Locks beside what they guard."""

import os
from pathlib import Path

import pytest

from dynamo.runtime.lock_file import lock_file
from dynamo.testing.descriptors import open_descriptors


def test_one_has_it_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = lock_file(path)
    before = open_descriptors(str(path))
    with pytest.raises(BlockingIOError):
        lock_file(path)
    assert open_descriptors(str(path)) == before, "who does not get it keeps nothing open"
    os.close(first)
    os.close(lock_file(path))


def test_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lock_file(tmp_path / "absent" / "lock")
