"""Where the OpenAI API listens."""

import socket

import pytest

from dynamo.errors import ConfigError
from dynamo.frontend.config import FrontendConfig
from dynamo.frontend.http_socket import bind_http


def test_a_port_that_is_taken() -> None:
    with bind_http(FrontendConfig(http_port=0)) as first:
        assert first.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port}: Address already in use \(--http-port takes another"):
            bind_http(FrontendConfig(http_port=port))
