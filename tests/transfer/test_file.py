"""Files: how they are opened, what goes wrong with them, and when they are closed."""

import asyncio
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dynamo.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    DynamoError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    RequestCancelledError,
)
from dynamo.testing import within
from dynamo.testing.descriptors import open_descriptors
from dynamo.transfer import Agent, file, runs, storage

KIB = 1 << 10
CONTENT = bytes(range(256)) * 256
Call = Callable[[int, int, int, int], int]


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with Agent("near") as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "blocks"
    made.write_bytes(CONTENT)
    return made


class Gate:
    """In front of the kernel's call: says that one has come, and lets it through when it is told to."""

    def __init__(self, call: Call) -> None:
        self.arrived, self.opened = threading.Event(), threading.Event()
        self.calls = 0
        self._call = call

    def __call__(self, *arguments: int) -> int:
        self.calls += 1
        self.arrived.set()
        assert self.opened.wait(10)
        return self._call(*arguments)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Reads wait at it; they are of 4 KiB."""
    made = Gate(file._preadv)
    monkeypatch.setattr(file, "_preadv", made)
    monkeypatch.setattr(runs, "RUN_BYTES_MAX", 4 * KIB)
    monkeypatch.setattr(file.FileLink, "lanes", 1)
    return made


async def arrived(gate: Gate) -> None:
    assert await within(asyncio.to_thread(gate.arrived.wait, 10))


async def test_sizes(agent: Agent, path: Path) -> None:
    assert agent.register_file(path).size_bytes == 64 * KIB
    assert agent.register_file(str(path), 5).size_bytes == 5
    for size_bytes in (64 * KIB + 1, -1):
        with pytest.raises(InvalidRequestError, match="65536 bytes"):
            agent.register_file(path, size_bytes)
    assert agent.register_file(path, 128 * KIB, writable=True).size_bytes == 128 * KIB
    assert agent.register_file(path).size_bytes == 128 * KIB


async def test_a_new_file_is_for_its_owner_alone(agent: Agent, tmp_path: Path) -> None:
    agent.register_file(tmp_path / "new", 100, writable=True)
    status = (tmp_path / "new").stat()
    assert (status.st_size, status.st_mode & 0o777) == (100, 0o600)


async def test_what_is_no_file(agent: Agent, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        for writable in (False, True):
            with pytest.raises(InvalidRequestError):
                agent.register_file(path, writable=writable)
    with pytest.raises(NotFoundError):
        agent.register_file(tmp_path / "absent")
    with pytest.raises(NotFoundError):
        agent.register_file(tmp_path / "absent", writable=True)


async def test_files_that_are_read_only(agent: Agent, path: Path) -> None:
    ours, theirs = agent.register(bytearray(10)), agent.register_file(path)
    with pytest.raises(InvalidRequestError, match="read-only"):
        agent.write(ours.all(), theirs.blocks([0], 10))


async def test_descriptors_are_closed(agent: Agent, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = agent.register(bytearray(10))
    region = agent.register_file(path)
    assert open_descriptors(str(path)) > 0
    await within(agent.read(ours.all(), region.blocks([0], 10)))
    agent.deregister(region)
    with pytest.raises(InvalidRequestError):
        agent.register_file(path, 1 << 40)
    monkeypatch.setattr(storage, "STORED_MAX", 0)
    with pytest.raises(OverloadedError):
        agent.register_file(path)
    assert open_descriptors(str(path)) == 0
    monkeypatch.undo()
    agent.register_file(path)
    await within(agent.close())
    assert open_descriptors(str(path)) == 0


async def test_no_descriptor_is_closed_under_a_copy(agent: Agent, path: Path, gate: Gate) -> None:
    ours, theirs = agent.register(bytearray(64 * KIB)), agent.register_file(path)
    pages = range(0, 64 * KIB, 4 * KIB)
    transfer = agent.read(ours.blocks(pages, 4 * KIB), theirs.blocks(pages, 4 * KIB))
    await arrived(gate)
    agent.deregister(theirs)
    assert open_descriptors(str(path)) > 0
    gate.opened.set()
    with pytest.raises(ConnectionLostError, match="deregistered"):
        await within(transfer)
    assert open_descriptors(str(path)) == 0
    assert transfer.done_bytes == 4 * KIB
    assert not any(ours.view()[4 * KIB :])


@pytest.mark.parametrize("how", ["cancelled", "too late"])
async def test_an_end_in_the_midst(agent: Agent, path: Path, gate: Gate, how: str) -> None:
    ours, theirs = agent.register(bytearray(64 * KIB)), agent.register_file(path)
    pages = range(0, 64 * KIB, 4 * KIB)
    transfer = agent.read(ours.blocks(pages, 4 * KIB), theirs.blocks(pages, 4 * KIB))
    await arrived(gate)
    if how == "cancelled":
        transfer.cancel()
    else:
        transfer._control.deadline_s = 0
    gate.opened.set()
    with pytest.raises((RequestCancelledError, DeadlineExceededError)):
        await within(transfer)
    assert (gate.calls, transfer.done_bytes) == (1, 4 * KIB)
    assert bytes(ours.view()) == CONTENT[: 4 * KIB] + bytes(60 * KIB)


@pytest.mark.parametrize("direct", [True, False])
async def test_a_file_that_was_cut(agent: Agent, path: Path, direct: bool) -> None:
    ours, theirs = agent.register(mmap.mmap(-1, 64 * KIB)), agent.register_file(path, direct=direct)
    os.truncate(path, 10_000)
    with pytest.raises(InvalidRequestError, match="ends at byte 10000"):
        await within(agent.read(ours.all(), theirs.all()))
    with pytest.raises(InvalidRequestError, match="ends at byte 20000"):
        await within(agent.read(ours.blocks([0], 5), theirs.blocks([20_000], 5)))
    await within(agent.read(ours.blocks([0], 8192), theirs.blocks([0], 8192)))


async def test_a_file_larger_than_it_may_be(agent: Agent, path: Path) -> None:
    """The limit is the process's own; it stands for a disk that is full."""
    ours = agent.register(bytearray(64 * KIB))
    theirs = agent.register_file(path, 128 * KIB, writable=True, direct=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (96 * KIB, before[1]))
    try:
        with pytest.raises(OverloadedError, match="too large"):
            await within(agent.write(ours.all(), theirs.blocks([64 * KIB], 64 * KIB)))
        with pytest.raises(OverloadedError, match="too large"):
            agent.register_file(path, 256 * KIB, writable=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await within(agent.write(ours.all(), theirs.blocks([64 * KIB], 64 * KIB)))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, OverloadedError),
        (errno.EDQUOT, OverloadedError),
        (errno.EIO, ConnectionLostError),
        (errno.EINVAL, ConnectionLostError),
    ],
)
async def test_disks_that_fail(
    agent: Agent, path: Path, number: int, kind: type[DynamoError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> int:
        ctypes.set_errno(number)
        return -1

    ours, theirs = agent.register(bytearray(100)), agent.register_file(path, writable=True)
    monkeypatch.setattr(file, "_pwritev", fail)
    with pytest.raises(kind, match=os.strerror(number)):
        await within(agent.write(ours.all(), theirs.blocks([0], 100)))
    monkeypatch.undo()
    await within(agent.write(ours.all(), theirs.blocks([0], 100)))


async def test_calls_that_are_interrupted_or_short_go_on(
    agent: Agent, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, calls = file._preadv, 0

    def read_a_little(descriptor: int, pointer: int, _pieces: int, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 2:
            ctypes.set_errno(errno.EINTR)
            return -1
        moved: int = preadv(descriptor, pointer, 1, offset)
        return moved

    monkeypatch.setattr(file, "_preadv", read_a_little)
    ours, theirs = agent.register(bytearray(64 * KIB)), agent.register_file(path)
    await within(agent.read(ours.blocks([100, 0], 10), theirs.blocks([5, 15], 10)))
    assert calls == 4
    assert bytes(ours.view()[100:110]) + bytes(ours.view()[:10]) == bytes(range(5, 25))


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each read, whether it went past the page cache."""
    preadv, found = file._preadv, []

    def read(descriptor: int, *arguments: int) -> int:
        found.append(bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT))
        moved: int = preadv(descriptor, *arguments)
        return moved

    monkeypatch.setattr(file, "_preadv", read)
    return found


@pytest.mark.parametrize(
    ("here", "there", "size_bytes", "direct"),
    [
        (0, 0, 4096, True),
        (8192, 4096, 8192, True),
        (8, 0, 4096, False),
        (0, 512, 4096, False),
        (0, 0, 4095, False),
    ],
)
async def test_what_is_aligned_goes_past_the_cache(
    agent: Agent, path: Path, used: list[bool], here: int, there: int, size_bytes: int, direct: bool
) -> None:
    ours, theirs = agent.register(mmap.mmap(-1, 64 * KIB)), agent.register_file(path)
    if agent._storage._links[theirs.id]._file._direct is None:  # type: ignore[attr-defined]
        pytest.skip("NOT TESTED: the filesystem of the temporary directory has no O_DIRECT")
    await within(agent.read(ours.blocks([here], size_bytes), theirs.blocks([there], size_bytes)))
    assert used == [direct]
    assert bytes(ours.view()[here : here + size_bytes]) == CONTENT[there : there + size_bytes]
    used.clear()
    cached = agent.register_file(path, direct=False)
    await within(agent.read(ours.blocks([here], size_bytes), cached.blocks([there], size_bytes)))
    assert used == [False]


async def test_filesystems_without_direct_access(
    agent: Agent, path: Path, used: list[bool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_file = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return open_file(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    ours, theirs = agent.register(mmap.mmap(-1, 64 * KIB)), agent.register_file(path)
    for _ in range(2):
        await within(agent.read(ours.all(), theirs.all()))
    assert used == [False, False]
    assert bytes(ours.view()) == CONTENT
    assert caplog.text.count("through the page cache: Invalid argument") == 1


async def test_filesystems_that_refuse_direct_access_later(
    agent: Agent, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    preadv = file._preadv

    def refuse(descriptor: int, *arguments: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            ctypes.set_errno(errno.EINVAL)
            return -1
        moved: int = preadv(descriptor, *arguments)
        return moved

    monkeypatch.setattr(file, "_preadv", refuse)
    ours, theirs = agent.register(mmap.mmap(-1, 64 * KIB)), agent.register_file(path)
    for _ in range(2):
        await within(agent.read(ours.all(), theirs.all()))
    assert bytes(ours.view()) == CONTENT
    assert caplog.text.count("through the page cache: Invalid argument") == 1


@pytest.mark.parametrize("sync", [True, False])
async def test_writes_are_flushed_if_asked(
    agent: Agent, path: Path, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    ours, theirs = agent.register(bytearray(100)), agent.register_file(path, writable=True, sync=sync)
    await within(agent.read(ours.all(), theirs.blocks([0], 100)))
    assert not flushed
    await within(agent.write(ours.all(), theirs.blocks([0], 100)))
    assert bool(flushed) is sync


async def test_checksums_that_differ(agent: Agent, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev = file._pwritev

    def write_badly(descriptor: int, pointer: int, pieces: int, offset: int) -> int:
        moved: int = pwritev(descriptor, pointer, pieces, offset)
        os.pwrite(descriptor, b"?", offset + 50)
        return moved

    ours, theirs = agent.register(bytearray(100)), agent.register_file(path, writable=True)
    monkeypatch.setattr(file, "_pwritev", write_badly)
    with pytest.raises(InternalError):
        await within(agent.write(ours.all(), theirs.blocks([0], 100), checksum=True))
