"""What is taken for metadata: nothing whose numbers would make no sense to the kernel."""

from typing import Any

import msgspec
import pytest

from dynamo.errors import InvalidRequestError
from dynamo.runtime.request_plane.base import Address
from dynamo.transfer.metadata import AgentMetadata, CmaOffer, RegionInfo, TcpOffer

REGION = RegionInfo(0, 1, 4096, 8, True)
CMA = CmaOffer(pid=1, ledger_address=8, cookie=bytes(16))
TCP = TcpOffer(host="localhost", port=1, secret=b"")


def encoded(*regions: RegionInfo, cma: CmaOffer = CMA, tcp: TcpOffer = TCP) -> bytes:
    address = Address(tcp_host="localhost", tcp_port=1)
    return AgentMetadata(name="a", address=address, regions=list(regions), cma=cma, tcp=tcp).encode()


def test_what_makes_sense() -> None:
    assert AgentMetadata.decode(encoded(REGION)).regions == [REGION]


@pytest.mark.parametrize(
    "change", [{"id": -1}, {"id": 4096}, {"address": -1}, {"address": 2**63}, {"size_bytes": -1}, {"size_bytes": 2**62}]
)
def test_regions_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        AgentMetadata.decode(encoded(msgspec.structs.replace(REGION, **change)))


@pytest.mark.parametrize(
    "change", [{"pid": 0}, {"pid": -1}, {"pid": 2**32 + 1}, {"ledger_address": -1}, {"ledger_address": 2**63}]
)
def test_processes_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        AgentMetadata.decode(encoded(cma=msgspec.structs.replace(CMA, **change)))


@pytest.mark.parametrize("port", [0, 65536])
def test_ports_that_cannot_be(port: int) -> None:
    with pytest.raises(InvalidRequestError):
        AgentMetadata.decode(encoded(tcp=msgspec.structs.replace(TCP, port=port)))
