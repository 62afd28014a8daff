"""The files of a process's certificate."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from dynamo.errors import ConfigError
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.mutual_tls import mutual_tls

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


def test_files_that_are_not_what_they_should_be(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("worker")
    _, others_key = authority.issue("other")
    nothing = tmp_path / "nothing"
    nothing.write_text("nothing")
    for files in ((cert, others_key, authority.ca), (cert, key, str(nothing)), (str(nothing), key, authority.ca)):
        with pytest.raises(ConfigError, match="no certificate"):
            mutual_tls(*files)
    with pytest.raises(ConfigError, match="No such file"):
        mutual_tls(cert, key, str(tmp_path / "none"))


def test_key_with_a_password_is_not_asked_for_at_the_terminal(authority: Authority) -> None:
    cert, key = authority.issue("worker")
    private = load_pem_private_key(Path(key).read_bytes(), None)
    Path(key).write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(ConfigError, match="password"):
        mutual_tls(cert, key, authority.ca)
