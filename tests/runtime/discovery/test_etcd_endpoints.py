"""What a configuration may say about etcd."""

from pathlib import Path
from typing import Any

import pytest

from dynamo.errors import ConfigError
from dynamo.runtime.discovery.etcd_config import EtcdConfig
from dynamo.runtime.discovery.etcd_endpoints import endpoint_urls, tls_context

from .conftest import Certificates


def test_endpoints() -> None:
    assert endpoint_urls("http://a:1, https://[::1]:2/,") == ["http://a:1", "https://[::1]:2"]


@pytest.mark.parametrize("text", ["", ",", "localhost:2379", "ftp://a:1", "http://", "http://a:b", "http://a:1/v3"])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ConfigError, match="etcd"):
        endpoint_urls(text)


def test_certificates_that_cannot_be_used(tmp_path: Path, certificates: Certificates) -> None:
    (tmp_path / "text").write_text("no certificate")
    wrong: tuple[dict[str, Any], ...] = (
        {"auth_ca": str(tmp_path / "missing")},
        {"auth_ca": str(tmp_path / "text")},
        {"auth_client_cert": str(tmp_path / "text")},
        {"auth_client_cert": certificates.ca},
        {"auth_client_key": certificates.client},
    )
    for fields in wrong:
        with pytest.raises(ConfigError, match="for etcd"):
            tls_context(EtcdConfig(**fields))
