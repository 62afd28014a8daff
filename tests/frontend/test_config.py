"""The frontend's command line."""

import pytest

from dynamo.config import parse
from dynamo.errors import ConfigError
from dynamo.frontend.config import FrontendConfig


def test_defaults() -> None:
    config = parse(FrontendConfig, [], prog="test", environ={})
    assert (config.http_host, config.http_port) == ("127.0.0.1", 8000)
    assert config.body_limit_bytes() == 45_000_000
    assert config.access_log


def test_variables() -> None:
    environ = {
        "DYN_HTTP_HOST": "0.0.0.0",
        "DYN_HTTP_PORT": "9000",
        "DYN_ROUTER_MODE": "least-loaded",
        "DYN_HTTP_BODY_LIMIT_MB": "1.5",
        "DYN_HTTP_ACCESS_LOG": "off",
    }
    config = parse(FrontendConfig, ["--http-port", "9001"], prog="test", environ=environ)
    assert (config.http_host, config.http_port, config.router_mode) == ("0.0.0.0", 9001, "least-loaded")
    assert config.body_limit_bytes() == 1_500_000
    assert not config.access_log


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_limit_that_is_none(limit: float) -> None:
    with pytest.raises(ConfigError, match="--http-body-limit-mb"):
        FrontendConfig(body_limit_mb=limit).body_limit_bytes()
