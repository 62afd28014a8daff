"""The request plane that a configuration names."""

from dynamo.errors import ConfigError
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.request_plane.base import RequestPlane
from dynamo.runtime.request_plane.inproc import InprocNetwork, InprocPlane
from dynamo.runtime.request_plane.tcp import TcpPlane


def make_request_plane(config: RuntimeConfig, network: InprocNetwork) -> RequestPlane:
    """`network` is what the runtimes of this process have in common. Raises ConfigError for what cannot be used."""
    match config.request_plane:
        case "inproc":
            return InprocPlane(network)
        case "tcp":
            return TcpPlane(
                config.rpc_host,
                config.rpc_port,
                advertised=config.advertised(),
                credentials=config.credentials(),
            )
        case other:
            raise ConfigError(f"there is no request plane {other!r}: choose tcp or inproc")
