"""The ways to move bytes that there are, the best first."""

from collections.abc import Callable
from dataclasses import dataclass

from dynamo.errors import ConfigError
from dynamo.runtime.credentials import NO_CREDENTIALS, Credentials
from dynamo.transfer.cma import CmaLink, CmaTarget
from dynamo.transfer.link import Link, Target
from dynamo.transfer.metadata import AgentMetadata
from dynamo.transfer.nixl import NixlEnds, is_of_use
from dynamo.transfer.regions import Regions
from dynamo.transfer.shm import ShmLink, ShmTarget
from dynamo.transfer.tcp import TcpLink, TcpTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One of them, for one agent: both its ends. Both block, and are called in threads, `open` first."""

    name: str
    open: Callable[[Regions, str], Target]  # of the agent's memory, on a host; raises ConfigError
    connect: Callable[[AgentMetadata], Link | None]  # None: the peer does not have it. Raises ConnectionLostError
    gpus: bool = False  # whether it moves memory of GPUs
    of_use: Callable[[], bool] = lambda: True  # on this host, to who has not asked for it by name


def _cma(_: Credentials) -> Backend:
    return Backend(
        name="cma",
        open=lambda _regions, _host: CmaTarget(),
        connect=lambda peer: None if peer.cma is None else CmaLink(peer.cma),
    )


def _shm(_: Credentials) -> Backend:
    return Backend(
        name="shm",
        open=lambda regions, _host: ShmTarget(regions),
        connect=lambda peer: None if peer.shm is None else ShmLink(peer.shm),
    )


def _nixl(_: Credentials) -> Backend:
    ends = NixlEnds()
    return Backend(
        name="nixl",
        open=lambda regions, _host: ends.open(regions),
        connect=lambda peer: None if peer.nixl is None else ends.connect(peer.nixl),
        gpus=True,
        of_use=is_of_use,
    )


def _tcp(credentials: Credentials) -> Backend:
    return Backend(
        name="tcp",
        open=lambda regions, host: TcpTarget(regions.admit, host, credentials.secret),
        connect=lambda peer: None if peer.tcp is None else TcpLink(peer.tcp, credentials.secret),
    )


BACKENDS = {"cma": _cma, "shm": _shm, "nixl": _nixl, "tcp": _tcp}


def backend(name: str, credentials: Credentials = NO_CREDENTIALS) -> Backend:
    """Raises ConfigError for one that there is not."""
    make = BACKENDS.get(name)
    if make is None:
        raise ConfigError(f"there is no transfer backend {name!r}: choose from {', '.join(BACKENDS)}")
    return make(credentials)


def backends_of_use(credentials: Credentials = NO_CREDENTIALS) -> list[Backend]:
    """All that do something on this host that those after them don't."""
    return [each for name in BACKENDS if (each := backend(name, credentials)).of_use()]
