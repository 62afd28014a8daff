"""Addresses that somebody has typed."""

import pytest

from dynamo.errors import ConfigError
from dynamo.planner.server_url import server_url


@pytest.mark.parametrize("url", ["http://h", "https://h:9090/prefix", "http://[::1]:80", "http://10.0.0.1:8001"])
def test_addresses(url: str) -> None:
    assert server_url(f"{url}/", "--x") == url


@pytest.mark.parametrize(
    "url",
    ["", "h:80", "HTTP://h", "file:///etc/passwd", "http://", "http://h/?x=1", "http://h/#x", "http://[::1", "http://h:x",
     "http://h:99999", "http://h:0", "http://h h", "http://h\n", "http://a..b", f"http://{'x' * 64}"],
)  # fmt: skip
def test_no_addresses(url: str) -> None:
    with pytest.raises(ConfigError, match="--x is written http"):
        server_url(url, "--x")


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        server_url("http://user:secret@h", "--x")
    assert "secret" not in str(refused.value)
