"""The files of a process's certificate."""

from pathlib import Path

import pytest

from dynamo.errors import ConfigError
from dynamo.runtime.config import RuntimeConfig

from .certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


def test_from_the_flags(authority: Authority) -> None:
    cert, key = authority.issue("worker")
    config = RuntimeConfig(request_plane_tls_cert=cert, request_plane_tls_key=key, request_plane_tls_ca=authority.ca)
    assert config.credentials({}).tls is not None
    assert config.credentials({}).secret is None


@pytest.mark.parametrize("missing", ["cert", "key", "ca"])
def test_all_three_or_none(authority: Authority, missing: str) -> None:
    cert, key = authority.issue("worker")
    files = {"cert": cert, "key": key, "ca": authority.ca}
    del files[missing]
    with pytest.raises(ConfigError, match="all three"):
        RuntimeConfig(
            request_plane_tls_cert=files.get("cert"),
            request_plane_tls_key=files.get("key"),
            request_plane_tls_ca=files.get("ca"),
        ).credentials({})
