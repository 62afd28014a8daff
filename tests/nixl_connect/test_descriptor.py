"""What descriptors are made of, and what they refuse."""

from array import array
from typing import Any

import numpy as np
import pytest

from dynamo.errors import InvalidRequestError, UnsupportedFeatureError
from dynamo.nixl_connect import Connector, Descriptor, Device, DeviceKind
from tests.transfer.test_agent import Tensor

NUMBERS = np.arange(6, dtype=np.int32).reshape(2, 3)


@pytest.mark.parametrize(
    "data",
    [
        NUMBERS,
        (NUMBERS, "cpu"),
        (NUMBERS, Device("cpu")),
        (NUMBERS.ctypes.data, 24, "cpu", NUMBERS),
        (NUMBERS.ctypes.data, 24, Device("cpu")),
        (NUMBERS.ctypes.data, 24),
        NUMBERS.tobytes(),
        bytearray(NUMBERS.tobytes()),
        array("i", range(6)),
        Tensor(bytearray(NUMBERS.tobytes())),
    ],
)
async def test_data(data: Any) -> None:
    descriptor = Descriptor(data)
    assert (descriptor.size, descriptor.device, descriptor.device.kind) == (24, Device("cpu"), DeviceKind.HOST)
    async with Connector() as connector:
        descriptor.register_memory(connector)
        assert bytes(descriptor.region(connector.agent).view()) == NUMBERS.tobytes()
        async with Connector() as other:
            with pytest.raises(ValueError, match="another connector"):
                descriptor.register_memory(other)


def test_bytes_are_where_they_are() -> None:
    """And not the object's header, as an address of the object itself would have it."""
    memory = bytearray(b"abc")
    assert Descriptor(memory).ptr == np.frombuffer(memory, np.uint8).ctypes.data


@pytest.mark.parametrize("data", [(), (1, "cpu", 2), (1, 2, 3), (NUMBERS, "cuda"), (1, 2, "cpu", 3, 4), (1,)])
def test_tuples_that_are_none(data: Any) -> None:
    with pytest.raises(TypeError):
        Descriptor(data)


def test_other_things() -> None:
    with pytest.raises(ValueError, match="data"):
        Descriptor(None)
    with pytest.raises(InvalidRequestError):
        Descriptor(NUMBERS[:, ::2])
    with pytest.raises(ValueError, match="tpu"):
        Descriptor((NUMBERS, "tpu"))


async def test_gpus() -> None:
    for data in ((4096, 24, "cuda:1"), (Cupy(), "cuda:1")):
        descriptor = Descriptor(data)
        assert (descriptor.ptr, descriptor.size, str(descriptor.device)) == (4096, 24, "cuda:1")
        assert descriptor.metadata().device == "cuda:1"
        async with Connector(backends=["tcp"]) as connector:
            with pytest.raises(UnsupportedFeatureError, match="nixl"):
                descriptor.register_memory(connector)


class Cupy:
    nbytes = 24
    __cuda_array_interface__ = {"data": (4096, False)}


async def test_null_pointers() -> None:
    async with Connector() as connector:
        with pytest.raises(ValueError, match="null"):
            Descriptor((0, 10)).register_memory(connector)


@pytest.mark.parametrize(
    ("given", "kind", "number", "text"),
    [
        ("cpu", DeviceKind.HOST, 0, "cpu"),
        (" Host ", DeviceKind.HOST, 0, "cpu"),
        ("cuda", DeviceKind.CUDA, 0, "cuda:0"),
        ("GPU:3", DeviceKind.CUDA, 3, "cuda:3"),
        ((DeviceKind.CUDA, 2), DeviceKind.CUDA, 2, "cuda:2"),
    ],
)
def test_devices(given: Any, kind: DeviceKind, number: int, text: str) -> None:
    device = Device(given)
    assert (device.kind, device.id, str(device)) == (kind, number, text)


@pytest.mark.parametrize(("given", "error"), [("tpu", ValueError), ("cuda:x", ValueError), (5, TypeError)])
def test_devices_that_are_none(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Device(given)
