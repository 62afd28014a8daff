"""The socket that the OpenAI API is served on."""

import socket

from dynamo.errors import ConfigError
from dynamo.frontend.config import FrontendConfig
from dynamo.runtime.listening_socket import bind


def bind_http(config: FrontendConfig) -> socket.socket:
    """A listening socket; ConfigError says what is wrong with the address, and which flag chooses another one."""
    try:
        return bind(config.http_host, config.http_port)
    except ConfigError as error:
        raise ConfigError(f"{error} (--http-port takes another port, 0 any free one)") from error
