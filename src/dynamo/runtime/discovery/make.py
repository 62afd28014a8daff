"""The discovery backend that a configuration names."""

from dynamo.errors import ConfigError
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.discovery.base import Discovery
from dynamo.runtime.discovery.etcd_config import EtcdConfig
from dynamo.runtime.discovery.file import FileDiscovery
from dynamo.runtime.discovery.memory import MemoryDiscovery, MemoryStore


def make_discovery(config: RuntimeConfig, store: MemoryStore) -> Discovery:
    """`store` is what the runtimes of this process have in common. Raises ConfigError for what cannot be used."""
    match config.discovery_backend:
        case "mem" | "memory":
            return MemoryDiscovery(store)
        case "file":
            return FileDiscovery(config.discovery_directory())
        case "etcd":
            return _etcd(config.etcd)
        case other:
            raise ConfigError(f"there is no discovery backend {other!r}: choose file, etcd or mem")


def _etcd(config: EtcdConfig) -> Discovery:
    try:
        from dynamo.runtime.discovery.etcd import EtcdDiscovery
    except ImportError as error:
        raise ConfigError(f"etcd needs the {error.name} package: pip install 'dynamo-py[etcd]'") from None
    return EtcdDiscovery(config)
