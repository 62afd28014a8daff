"""The ways to move bytes that there are, the best first."""

from collections.abc import Callable
from dataclasses import dataclass

from dynamo.errors import ConfigError
from dynamo.transfer.cma import CmaLink, CmaTarget
from dynamo.transfer.link import Link, Target
from dynamo.transfer.metadata import AgentMetadata
from dynamo.transfer.regions import Regions
from dynamo.transfer.shm import ShmLink, ShmTarget
from dynamo.transfer.tcp import TcpLink, TcpTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One of them: both its ends."""

    name: str
    open: Callable[[Regions, str], Target]  # of the agent's memory, on a host; raises ConfigError
    connect: Callable[
        [AgentMetadata], Link | None
    ]  # blocks; None: the peer does not have it. Raises ConnectionLostError


def _connect_cma(peer: AgentMetadata) -> Link | None:
    return None if peer.cma is None else CmaLink(peer.cma)


def _connect_shm(peer: AgentMetadata) -> Link | None:
    return None if peer.shm is None else ShmLink(peer.shm)


def _connect_tcp(peer: AgentMetadata) -> Link | None:
    return None if peer.tcp is None else TcpLink(peer.tcp)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(name="cma", open=lambda _regions, _host: CmaTarget(), connect=_connect_cma),
        Backend(name="shm", open=lambda regions, _host: ShmTarget(regions), connect=_connect_shm),
        Backend(name="tcp", open=lambda regions, host: TcpTarget(regions.admit, host), connect=_connect_tcp),
    )
}


def backend(name: str) -> Backend:
    """Raises ConfigError for one that there is not."""
    found = BACKENDS.get(name)
    if found is None:
        raise ConfigError(f"there is no transfer backend {name!r}: choose from {', '.join(BACKENDS)}")
    return found
