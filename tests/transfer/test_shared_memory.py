"""Allocated memory by itself: how large, how long, and what is not taken for it."""

import os
from collections.abc import Iterator

import pytest

from dynamo.errors import ConnectionLostError, InvalidRequestError, OverloadedError
from dynamo.testing.descriptors import open_descriptors
from dynamo.transfer import Agent
from dynamo.transfer.memory import view_of
from dynamo.transfer.shared_memory import SharedMemory, mapped


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    opened: list[int] = []
    yield opened
    for fd in opened:
        os.close(fd)


async def test_zeros_of_any_size() -> None:
    async with Agent("a") as near:
        for size_bytes in (0, 1, 4095, 4096, 1_000_001):
            region = near.allocate(size_bytes)
            assert bytes(region.view()) == bytes(size_bytes)
            region.view()[:] = b"x" * size_bytes
            assert (region.size_bytes, region.writable) == (size_bytes, True)
            assert len(region.all()) == 1


@pytest.mark.parametrize(("size_bytes", "error"), [(-1, InvalidRequestError), (2**63, OverloadedError)])
async def test_sizes_that_cannot_be(size_bytes: int, error: type[Exception]) -> None:
    async with Agent("a") as near:
        before = open_descriptors("memfd:dynamo-transfer")
        with pytest.raises(error):
            near.allocate(size_bytes)
        assert open_descriptors("memfd:dynamo-transfer") == before


async def test_a_view_keeps_its_memory() -> None:
    async with Agent("a") as near:
        region = near.allocate(3)
        view = region.view()
        near.deregister(region)
        del region
        view[:] = b"abc"  # a segmentation fault otherwise
        assert bytes(view) == b"abc"


def test_what_can_be_mapped() -> None:
    memory = SharedMemory(10)
    assert mapped(memory.fd, 10, writable=True).size_bytes == 10
    with pytest.raises(ConnectionLostError, match="not its shared memory"):
        mapped(memory.fd, 11, writable=True)


def test_what_can_shrink_is_not_mapped(descriptors: list[int]) -> None:
    descriptors += [os.memfd_create("test", os.MFD_ALLOW_SEALING), os.open("/dev/zero", os.O_RDWR)]
    os.ftruncate(descriptors[0], 10)
    for fd in descriptors:
        with pytest.raises(ConnectionLostError):
            mapped(fd, 10, writable=True)


def test_it_cannot_shrink() -> None:
    memory = SharedMemory(10)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 5)


@pytest.mark.filterwarnings("ignore:This process")  # is multi-threaded, after other tests
def test_a_forked_child_gives_back_nothing() -> None:
    memory = SharedMemory(3)
    view_of(memory.address, 3)[:] = b"abc"
    child = os.fork()
    if not child:
        del memory
        os._exit(0)
    os.waitpid(child, 0)
    assert bytes(view_of(memory.address, 3)) == b"abc"
