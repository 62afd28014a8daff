"""Memory of this process that an operation reads or writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynamo.nixl_connect.device import Device, DeviceKind
from dynamo.nixl_connect.metadata import SerializedDescriptor
from dynamo.transfer import Agent, Region
from dynamo.transfer.memory import Memory

if TYPE_CHECKING:
    from dynamo.nixl_connect.connector import Connector


class Descriptor:
    """Registered with the connector of its first operation, until it is garbage."""

    def __init__(self, data: Any) -> None:
        """`data`: one of

        - a torch tensor, or whatever else `Agent.register` takes: a NumPy array, bytes, bytearray;
        - a pair of an array and the Device or text that says where it lies;
        - a tuple (address, size in bytes[, Device or text[, what keeps it there]]).

        Raises ValueError for None, TypeError for something else, InvalidRequestError for memory with gaps.
        """
        if data is None:
            raise ValueError("a descriptor needs data")
        self._source = _source(data)
        self._memory = Memory(self._source)  # keeps it where it is
        self.ptr = self._memory.address
        self.size = self._memory.size_bytes
        gpu = self._memory.gpu
        self.device = Device("cpu") if gpu is None else Device((DeviceKind.CUDA, gpu))
        self._agent: Agent | None = None
        self._region: Region | None = None

    def __del__(self) -> None:
        region = getattr(self, "_region", None)
        if region is not None and self._agent is not None:
            self._agent.deregister(region)

    def __repr__(self) -> str:
        return f"Descriptor(ptr={self.ptr:#x}, size={self.size}, device={self.device})"

    def metadata(self) -> SerializedDescriptor:
        return SerializedDescriptor(device=str(self.device), ptr=self.ptr, size=self.size)

    def register_memory(self, connector: "Connector") -> None:
        """Operations do it by themselves. Idempotent. Raises what region() raises."""
        self.region(connector.agent)

    def region(self, agent: Agent) -> Region:
        """Its memory as registered with this agent, with which it stays.

        Raises ValueError for a null pointer or another agent, and what Agent.register raises.
        """
        if self.ptr == 0:
            raise ValueError("memory at the null pointer cannot be registered")
        if self._region is None:
            self._region = agent.register(self._source)
            self._agent = agent
        elif self._agent is not agent:
            raise ValueError("the descriptor is registered with another connector")
        return self._region


def as_list(descriptors: Descriptor | Sequence[Descriptor]) -> list[Descriptor]:
    """Raises TypeError for something else, ValueError for none."""
    found = [descriptors] if isinstance(descriptors, Descriptor) else descriptors
    if not isinstance(found, list) or not all(isinstance(each, Descriptor) for each in found):
        raise TypeError("local descriptors are a Descriptor or a list of them")
    if not found:
        raise ValueError("an operation needs at least one descriptor")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A Tensor, as Memory sees it, for memory that is given by its address."""

    address: int
    size_bytes: int
    device: "_TorchDevice"
    keep: object = None

    def data_ptr(self) -> int:
        return self.address

    def is_contiguous(self) -> bool:
        return True

    def element_size(self) -> int:
        return 1

    def numel(self) -> int:
        return self.size_bytes


@dataclass(frozen=True, slots=True)
class _TorchDevice:
    """As much of torch.device as Memory looks at."""

    type: str
    index: int | None


def _source(data: Any) -> Any:
    """What Agent.register takes."""
    if not isinstance(data, tuple):
        return data
    match data:
        case (int() as address, int() as size_bytes, *more) if len(more) <= 2:
            device = _device(more[0]) if more else Device("cpu")
            return _Place(address=address, size_bytes=size_bytes, device=_torch(device), keep=more[1:])
        case (array, (Device() | str()) as where):
            return _array(array, _device(where))
    raise TypeError("a tuple of a descriptor has an array and a device, or an address, a size and a device")


def _array(array: Any, device: Device) -> Any:
    """Its own memory, or for CuPy's the one that it tells."""
    if device.kind is DeviceKind.HOST:
        return array
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise TypeError(f"{type(array).__name__} does not lie on a GPU")
    return _Place(address=interface["data"][0], size_bytes=array.nbytes, device=_torch(device), keep=array)


def _device(where: Any) -> Device:
    if not isinstance(where, Device | str):
        raise TypeError("the third of a descriptor's tuple is a Device or a text")
    return where if isinstance(where, Device) else Device(where)


def _torch(device: Device) -> _TorchDevice:
    return _TorchDevice(str(device.kind), device.id if device.kind is DeviceKind.CUDA else None)
