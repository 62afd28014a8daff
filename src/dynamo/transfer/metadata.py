"""What an agent tells its peers of itself: `Agent.metadata()`. Plain msgpack, nothing in it is executed."""

from typing import Annotated

import msgspec

from dynamo.errors import InvalidRequestError
from dynamo.runtime.request_plane.base import Address

VERSION = 1
REGIONS_MAX = 4096  # of an agent
Size = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]  # no sum of two is too large for the kernel


class RegionInfo(msgspec.Struct, array_like=True, frozen=True):
    """A registered region."""

    id: Annotated[int, msgspec.Meta(ge=0, lt=REGIONS_MAX)]
    key: int  # stands among the agent's keys as long as the region is registered
    address: Size
    size_bytes: Size
    writable: bool
    shared: bool = False  # other processes can map it
    gpu: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)] | None = None  # which one's memory it is; host memory when None
    nixl: bytes = b""  # what NIXL has to know of it; empty when it does not reach it


class CmaOffer(msgspec.Struct, frozen=True, kw_only=True):
    """Processes of the same host and user may read and write each other's memory: process_vm_readv."""

    pid: Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
    ledger_address: Size
    cookie: bytes  # what it begins with: another process of this number has something else there


class ShmOffer(msgspec.Struct, frozen=True, kw_only=True):
    """An abstract Unix socket of this host, at which shared memory can be had."""

    socket: str
    secret: bytes
    cookie: bytes  # stands in the ledger that comes first, as long as the agent lives


class TcpOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A socket that serves reads and writes."""

    host: str
    port: Annotated[int, msgspec.Meta(gt=0, lt=1 << 16)]
    secret: bytes
    proof: bool = False  # whether it asks for one of the deployment's secret, and gives one


class NixlOffer(msgspec.Struct, frozen=True, kw_only=True):
    """An agent of NIXL's."""

    name: str
    connection: bytes  # how NIXL gets there
    ledger_address: Size
    cookie: bytes


class AgentMetadata(msgspec.Struct, omit_defaults=True, kw_only=True):
    version: int = VERSION
    name: str
    address: Address  # for notifications and checksums
    regions: list[RegionInfo] = []
    cma: CmaOffer | None = None
    shm: ShmOffer | None = None
    nixl: NixlOffer | None = None
    tcp: TcpOffer | None = None

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "AgentMetadata":
        """Raises InvalidRequestError for what is no metadata, or of another version."""
        try:
            metadata = msgspec.msgpack.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise InvalidRequestError(f"this is no agent's metadata: {error}") from error
        if metadata.version != VERSION:
            raise InvalidRequestError(f"the agent's metadata has version {metadata.version}, not {VERSION}")
        return metadata
