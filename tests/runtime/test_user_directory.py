"""Where processes of one user meet."""

import os
import tempfile
from pathlib import Path

import pytest

from dynamo.runtime.user_directory import user_directory


def test_each_user_has_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = user_directory()
    assert mine.parent == tmp_path
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert user_directory() == tmp_path / "dynamo-12345" != mine
