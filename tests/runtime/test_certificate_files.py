"""What can be wrong with the files of a certificate."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from dynamo.errors import ConfigError
from dynamo.runtime.certificate_files import show_certificate, trust_authority

from .certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def test_key_in_the_same_file(authority: Authority, context: ssl.SSLContext, tmp_path: Path) -> None:
    cert, key = authority.issue("worker")
    both = tmp_path / "both.pem"
    both.write_bytes(Path(cert).read_bytes() + Path(key).read_bytes())
    show_certificate(context, str(both), None)
    trust_authority(context, authority.ca)


def test_files_that_are_not_what_they_should_be(authority: Authority, context: ssl.SSLContext, tmp_path: Path) -> None:
    cert, _ = authority.issue("worker")
    _, others_key = authority.issue("other")
    nothing, missing = tmp_path / "nothing", str(tmp_path / "missing")
    nothing.write_text("nothing")
    for file, key in ((cert, others_key), (str(nothing), others_key), (cert, None)):
        with pytest.raises(ConfigError, match="no certificate with its key"):
            show_certificate(context, file, key)
    with pytest.raises(ConfigError, match="no certificate of an authority"):
        trust_authority(context, str(nothing))
    with pytest.raises(ConfigError, match="No such file"):
        show_certificate(context, missing, None)
    with pytest.raises(ConfigError, match="No such file"):
        trust_authority(context, missing)


def test_key_with_a_password_is_not_asked_for_at_the_terminal(authority: Authority, context: ssl.SSLContext) -> None:
    cert, key = authority.issue("worker")
    private = load_pem_private_key(Path(key).read_bytes(), None)
    Path(key).write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(ConfigError, match="password"):
        show_certificate(context, cert, key)
