import os

import pytest

from dynamo.errors import InvalidRequestError, OverloadedError
from dynamo.kvbm.arena import MARGIN_BYTES, HostArena
from dynamo.testing.descriptors import open_descriptors
from dynamo.transfer.memory import view_of
from dynamo.transfer.shared_memory import mapped

SLOT_BYTES = 4096


def resident_blocks(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512 // SLOT_BYTES


def test_memory_is_taken_as_it_grows_and_no_sooner() -> None:
    arena = HostArena(1000, SLOT_BYTES)
    assert (arena.ready, resident_blocks(arena.fd), arena.memory_bytes) == (0, 0, 1000 * SLOT_BYTES)
    assert arena.grow(10) == 10
    assert (arena.ready, resident_blocks(arena.fd)) == (10, 10)
    assert arena.grow(5000) == 990
    assert arena.grow(1) == 0
    assert (arena.ready, resident_blocks(arena.fd)) == (1000, 1000)


def test_it_grows_no_further_than_memory_is_free_and_goes_on_later() -> None:
    free = MARGIN_BYTES + 5 * SLOT_BYTES
    arena = HostArena(100, SLOT_BYTES, available_bytes=lambda: free)
    assert arena.grow(10) == 5
    free = 0
    assert arena.grow(10) == 0
    free = MARGIN_BYTES + 100 * SLOT_BYTES
    assert arena.grow(100) == 95


def test_a_file_system_that_has_no_more_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, start: int, length: int) -> None:
        raise OSError(28, "no space")

    arena = HostArena(100, SLOT_BYTES)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert (arena.grow(10), arena.ready) == (0, 0)


def test_slots_are_apart() -> None:
    arena = HostArena(3, SLOT_BYTES)
    arena.grow(3)
    arena.slot(1)[:] = b"1" * SLOT_BYTES
    assert bytes(arena.memory) == bytes(SLOT_BYTES) + b"1" * SLOT_BYTES + bytes(SLOT_BYTES)


def test_nobody_can_take_it_away() -> None:
    arena = HostArena(3, SLOT_BYTES)
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 0)


def test_it_outlives_the_service_for_who_has_mapped_it() -> None:
    """Zeros in its place would be copied into an engine's cache as if they were a block."""
    arena = HostArena(3, SLOT_BYTES)
    arena.grow(3)
    arena.slot(2)[:4] = b"here"
    other = os.dup(arena.fd)
    memory = mapped(other, 3 * SLOT_BYTES, writable=True)
    del arena
    assert bytes(view_of(memory.address, 3 * SLOT_BYTES)[2 * SLOT_BYTES :][:4]) == b"here"
    os.close(other)


def test_it_can_be_given_back() -> None:
    arena = HostArena(3, SLOT_BYTES)
    arena.grow(3)
    view = arena.slot(1)
    arena.give_back()
    assert resident_blocks(arena.fd) == 0
    assert bytes(view) == bytes(SLOT_BYTES)


@pytest.mark.parametrize(("slots", "error"), [(0, InvalidRequestError), (2**60, OverloadedError)])
def test_sizes_that_cannot_be(slots: int, error: type[Exception]) -> None:
    before = open_descriptors("memfd:dynamo-kvbm")
    with pytest.raises(error):
        HostArena(slots, SLOT_BYTES)
    assert open_descriptors("memfd:dynamo-kvbm") == before
