"""The server's certificate."""

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from dynamo.errors import ConfigError
from dynamo.frontend.config import FrontendConfig
from dynamo.frontend.tls import server_context


def test_key_with_a_password_is_not_asked_for_at_the_terminal(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    private = load_pem_private_key(issued.private_key_pem.bytes(), None)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(ConfigError, match="password"):
        server_context(str(cert), str(key))


def test_no_tls_unless_asked_for() -> None:
    assert FrontendConfig().tls() is None
