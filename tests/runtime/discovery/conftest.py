"""An etcd for the tests of a module, and roots in it for each test."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import trustme

from dynamo.runtime.discovery.etcd import EtcdDiscovery
from dynamo.runtime.discovery.etcd_config import EtcdConfig
from dynamo.testing.etcd_server import ETCD, EtcdServer

MakeEtcd = Callable[..., EtcdDiscovery]
_roots = itertools.count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One that gentle tests share."""
    yield from _started(tmp_path_factory)


@pytest.fixture
def own_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One for a test that breaks it."""
    yield from _started(tmp_path_factory)


@pytest.fixture
def root() -> str:
    """Where in a shared etcd a test's entries stand."""
    return f"test-{next(_roots)}/"


@pytest.fixture
async def make(root: str) -> AsyncIterator[MakeEtcd]:
    """Makes participants, `make(server, ...)`; closed at the end."""
    made: list[EtcdDiscovery] = []

    def new(server: EtcdServer, *, register_timeout_s: float = 10.0, **fields: Any) -> EtcdDiscovery:
        given: dict[str, Any] = {"endpoints": server.url, "lease_ttl_s": 3} | fields
        config = EtcdConfig(**given)
        made.append(EtcdDiscovery(config, root=root, register_timeout_s=register_timeout_s))
        return made[-1]

    yield new
    for discovery in made:
        await discovery.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    ca: str
    server: str
    client: str


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    made = Certificates(
        ca=str(directory / "ca.pem"), server=str(directory / "server.pem"), client=str(directory / "client.pem")
    )
    authority.cert_pem.write_to_path(made.ca)
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(made.server)
    authority.issue_cert("worker@example.org").private_key_and_cert_chain_pem.write_to_path(made.client)
    return made


def _started(directories: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    if ETCD is None:
        pytest.skip("there is no etcd here (on Debian and Ubuntu: apt-get install etcd-server)")
    with EtcdServer(directories.mktemp("etcd")) as server:
        yield server
