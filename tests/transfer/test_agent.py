"""Agents beside their backends: metadata, notifications, what can be registered, and the choice of a backend."""

import asyncio
import contextlib
import errno
import gc
import mmap
import socket
import threading
import weakref
from array import array
from typing import Any

import msgspec
import pytest

from dynamo.errors import (
    ConfigError,
    ConnectionLostError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    UnsupportedFeatureError,
)
from dynamo.runtime.context import Context
from dynamo.testing import eventually, within
from dynamo.transfer import Agent, Blocks, Notification, TransferState, agent, backends, cma, peer, regions
from dynamo.transfer.agent import ChecksumRequest
from dynamo.transfer.checksum import checksum_of_memory
from dynamo.transfer.metadata import AgentMetadata


async def test_what_can_be_registered() -> None:
    mapped = mmap.mmap(-1, 4096)
    async with Agent("a") as near:
        for memory in (b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), array("B", b"abcd"), mapped):
            region = near.register(memory)
            assert bytes(region.view()[:4]) == bytes(memory[:4])
            assert region.size_bytes == len(memory)
            assert region.writable == (not memoryview(memory).readonly) == (not region.view().readonly)
            near.deregister(region)
            near.deregister(region)
        empty = near.register(b"")
        assert len(empty.blocks([], 5)) == 0


@pytest.mark.parametrize("memory", [None, 5, "text", [1, 2], memoryview(b"abcdef")[::2]])
async def test_what_cannot(memory: Any) -> None:
    async with Agent("a") as near:
        with pytest.raises(InvalidRequestError):
            near.register(memory)


class Tensor:
    """As much of torch.Tensor as an agent looks at."""

    def __init__(self, data: bytearray, device: str = "cpu", *, contiguous: bool = True) -> None:
        self.device = type("Device", (), {"type": device, "index": None if device == "cpu" else 0})()
        self._memory = array("H", bytes(data))
        self._contiguous = contiguous

    def data_ptr(self) -> int:
        return self._memory.buffer_info()[0]

    def is_contiguous(self) -> bool:
        return self._contiguous

    def element_size(self) -> int:
        return 2

    def numel(self) -> int:
        return len(self._memory)


async def test_tensors() -> None:
    async with Agent("a") as near:
        assert bytes(near.register(Tensor(bytearray(b"bfloat16"))).view()) == b"bfloat16"
        with pytest.raises(InvalidRequestError, match="contiguous"):
            near.register(Tensor(bytearray(4), contiguous=False))
        with pytest.raises(UnsupportedFeatureError, match="cuda"):
            near.register(Tensor(bytearray(4), "cuda"))


async def test_registered_memory_stays_where_it_is() -> None:
    async with Agent("a") as near:
        memory = bytearray(8)
        region = near.register(memory)
        with pytest.raises(BufferError):
            memory.extend(b"more")
        near.deregister(region)
        del region
        memory.extend(b"more")


async def test_regions_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "REGIONS_MAX", 3)
    async with Agent("a") as near:
        three = [near.register(b"x") for _ in range(3)]
        with pytest.raises(OverloadedError):
            near.register(b"x")
        near.deregister(three[1])
        assert near.register(b"x").id == 1


def test_backends_that_there_are_not() -> None:
    with pytest.raises(ConfigError, match="carrier pigeon"):
        Agent("a", ["carrier pigeon"])


@pytest.mark.parametrize("data", [b"", b"\xc1", b"nonsense", msgspec.msgpack.encode({"name": "x"})])
async def test_metadata_that_is_none(data: bytes) -> None:
    async with Agent("a") as near:
        with pytest.raises(InvalidRequestError):
            near.add_peer(data)


async def test_metadata_of_another_version() -> None:
    async with Agent("a") as near, Agent("b") as far:
        later = msgspec.structs.replace(AgentMetadata.decode(far.metadata()), version=2)
        with pytest.raises(InvalidRequestError, match="version 2"):
            near.add_peer(later.encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(["a", [[0, b"1234567", b"1234567"]]]),
        msgspec.msgpack.encode(["a", [[0, b"12345678", b""]]]),
        msgspec.msgpack.encode(["a", [["x", b"", b""]]]),
    ],
)
def test_lists_of_blocks_that_are_none(data: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        Blocks.decode(data)


def test_lists_of_blocks_travel() -> None:
    blocks = Blocks.of("a", 3, [0, 2**63], [1, 2]) + Blocks.of("a", 4, [5], [6])
    assert Blocks.decode(blocks.encode()) == blocks
    assert (len(blocks), blocks.size_bytes) == (3, 9)
    with pytest.raises(InvalidRequestError):
        blocks + Blocks.of("b", 0, [], [])


@pytest.mark.parametrize("offsets", [[-1], [2**64], ["x"], [0.5]])
def test_offsets_that_are_none(offsets: list[Any]) -> None:
    with pytest.raises(InvalidRequestError):
        Blocks.of("a", 0, offsets, [1])


async def test_notifications_come_in_order() -> None:
    async with Agent("a") as near, Agent("b") as far:
        near.add_peer(far.metadata())
        for i in range(5):
            await within(near.notify("b", bytes([i])))
        received = far.notifications()
        for i in range(5):
            notification = await within(anext(received))
            assert (notification.sender, notification.payload) == ("a", bytes([i]))
        await received.aclose()  # type: ignore[attr-defined]
        with pytest.raises(InvalidRequestError, match="'c'"):
            await near.notify("c", b"")


async def test_notifications_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "NOTIFICATIONS_MAX", 2)
    async with Agent("a") as near, Agent("b") as far:
        near.add_peer(far.metadata())
        for _ in range(2):
            await within(near.notify("b", b""))
        with pytest.raises(OverloadedError):
            await within(near.notify("b", b""))


async def test_notifications_to_who_is_gone() -> None:
    async with Agent("a") as near:
        async with Agent("b") as far:
            near.add_peer(far.metadata())
        with pytest.raises((ConnectionLostError, DeadlineExceededError)):
            await within(near.notify("b", b"", timeout_s=2))


async def test_questions_are_answered_by_who_has_said_how() -> None:
    async with Agent("a") as near, Agent("b") as far:
        near.add_peer(far.metadata())
        with pytest.raises(NotFoundError, match="'b'"):
            await within(near.ask("b", b"?"))

        async def answer(question: Notification) -> bytes:
            if question.payload == b"?":
                raise OverloadedError("not now")
            return question.sender.encode() + question.payload

        far.answer_with(answer)
        assert await within(near.ask("b", b"!")) == b"a!"
        with pytest.raises(OverloadedError, match="not now"):
            await within(near.ask("b", b"?"))


async def test_a_question_has_a_deadline() -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def never(_: Notification) -> bytes:
        asked.set()
        try:
            return await asyncio.Future[bytes]()
        finally:
            ended.set()

    async with Agent("a") as near, Agent("b") as far:
        near.add_peer(far.metadata())
        far.answer_with(never)
        with pytest.raises(DeadlineExceededError):
            await within(near.ask("b", b"?", timeout_s=0.1))
        await within(asked.wait())
        await within(ended.wait())  # nobody goes on working for an answer that nobody wants


async def test_what_does_not_work_is_said_and_the_next_one_taken(caplog: pytest.LogCaptureFixture) -> None:
    async with Agent("a") as near, Agent("b") as far:
        metadata = AgentMetadata.decode(far.metadata())
        assert metadata.cma is not None
        metadata.cma = msgspec.structs.replace(metadata.cma, cookie=b"another process.")
        ours = near.register(bytearray(8))
        theirs = far.register(b"by tcp..")
        metadata.regions = AgentMetadata.decode(far.metadata()).regions
        near.add_peer(metadata.encode())
        for _ in range(2):
            transfer = near.read(ours.all(), theirs.all())
            await within(transfer)
        assert (transfer.backend, bytes(ours.view())) == ("tcp", b"by tcp..")
        assert caplog.text.count("transfers with 'b' go by tcp: the peer's process is gone") == 1


async def test_backends_that_only_one_has() -> None:
    async with Agent("a", ["cma"]) as near, Agent("b", ["tcp"]) as far:
        near.add_peer(far.metadata())
        ours, theirs = near.register(bytearray(8)), far.register(bytearray(8))
        near.add_peer(far.metadata())
        with pytest.raises(ConnectionLostError, match="no transfer backend reaches 'b'"):
            await within(near.read(ours.all(), theirs.all()))


@pytest.mark.parametrize("backend", ["cma", "shm"])
async def test_little_is_copied_at_once_unless_it_is_in_many_pieces(backend: str) -> None:
    async with Agent("a", [backend]) as near, Agent("b", [backend]) as far:
        ours, theirs = near.allocate(2000), far.allocate(2000)
        near.add_peer(far.metadata())
        await within(near.read(ours.all(), theirs.all()))
        assert near.read(ours.all(), theirs.all()).state is TransferState.DONE
        scattered = near.read(ours.blocks(range(2000), 1), theirs.blocks(range(2000), 1))
        assert scattered.state is TransferState.RUNNING
        await within(scattered)


async def test_peer_that_is_removed_while_it_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Agent("a", ["cma"]) as near, Agent("b", ["cma"]) as far:
        ours, theirs = near.register(bytearray(8)), far.register(bytearray(8))
        near.add_peer(far.metadata())
        transfer = near.read(ours.all(), theirs.all())
        near.remove_peer("b")
        with pytest.raises(ConnectionLostError, match="was removed"):
            await within(transfer)


async def test_checksums_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Agent("a") as near, Agent("b") as far:
        ours, theirs = near.register(bytearray(8)), far.register(bytearray(8))
        near.add_peer(far.metadata())
        copy = cma.CmaLink.copy

        def copy_badly(self: cma.CmaLink, job: Any) -> None:
            copy(self, job)
            ours.view()[3] ^= 1

        monkeypatch.setattr(cma.CmaLink, "copy", copy_badly)
        with pytest.raises(InternalError, match="not those at 'b'"):
            await within(near.read(ours.all(), theirs.all(), checksum=True))


async def test_strangers_get_nothing() -> None:
    async with Agent("a", ["tcp"]) as far:
        offer = AgentMetadata.decode(far.metadata()).tcp
        assert offer is not None
        for greeting in (b"", b"x" * 16, b"GET / HTTP/1.1\r\n\r\n"):
            with socket.create_connection((offer.host, offer.port), 5) as stranger:
                stranger.sendall(greeting)
                try:
                    stranger.shutdown(socket.SHUT_WR)
                except OSError as error:
                    if error.errno != errno.ENOTCONN:  # it has been reset already
                        raise
                stranger.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    assert stranger.recv(1) == b""


async def test_a_checksum_that_nobody_waits_for_keeps_its_memory_until_its_thread_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> int:
        begun.set()
        assert go_on.wait(10)
        return checksum_of_memory(*arguments)

    monkeypatch.setattr(agent, "checksum_of_memory", slowly)
    async with Agent("a") as far:
        memory = array("B", bytes(8))
        kept = weakref.ref(memory)
        region = far.register(memory)
        vector = array("Q", [region.address, region.size_bytes]).tobytes()
        asked = far._on_checksum(ChecksumRequest(((region.id, region.key),), vector), Context())
        answering = asyncio.ensure_future(anext(asked))
        await within(asyncio.to_thread(begun.wait))
        far.deregister(region)
        answering.cancel()
        await asyncio.wait([answering])
        del memory, region
        gc.collect()
        assert kept() is not None
        go_on.set()
        await eventually(lambda: kept() is None)


async def test_checksums_only_of_what_is_registered() -> None:
    async with Agent("a") as far:
        region = far.register(bytearray(8))
        for key, address, size_bytes in (
            (region.key + 1, region.address, 8),
            (region.key, region.address, 9),
            (region.key, region.address - 1, 1),
        ):
            request = ChecksumRequest(((region.id, key),), array("Q", [address, size_bytes]).tobytes())
            with pytest.raises(InvalidRequestError):
                await within(anext(far._on_checksum(request, Context())))


async def test_a_checksum_has_a_deadline() -> None:
    async with Agent("a") as far:
        region = far.register(bytearray(8))
        vector = array("Q", [region.address, 8]).tobytes()
        asked = far._on_checksum(ChecksumRequest(((region.id, region.key),), vector), Context(deadline_s=0))
        with pytest.raises(DeadlineExceededError):
            await within(anext(asked))


async def test_an_agent_that_cannot_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ConfigError("not here")

    monkeypatch.setattr(backends, "TcpTarget", fail)
    with pytest.raises(ConfigError, match="not here"):
        await Agent("a", ["shm", "tcp"]).start()
    assert "transfer-shm" not in {thread.name for thread in threading.enumerate()}


async def test_deadline_of_what_has_only_begun_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is the deadline's doing, whichever of its parts is looked at."""
    monkeypatch.setattr(peer, "_THREADS", 1)
    async with Agent("a", ["cma"]) as near, Agent("b", ["cma"]) as far:
        there, here = far.allocate(256 << 20), near.allocate(256 << 20)
        near.add_peer(far.metadata())
        await near.read(here.blocks([0], 8), there.blocks([0], 8))
        for _ in range(5):
            transfer = near.read(here.all(), there.all(), timeout_s=0.02)
            with pytest.raises(DeadlineExceededError):
                await within(transfer)
