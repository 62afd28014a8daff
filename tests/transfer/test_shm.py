"""Shared memory beside what all backends do: who gets it, what is left of it, and when it is not taken."""

import asyncio
import ctypes
import gc
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo.errors import ConnectionLostError, DeadlineExceededError, InvalidRequestError
from dynamo.testing import eventually, within
from dynamo.testing.descriptors import open_descriptors
from dynamo.testing.program import program
from dynamo.transfer import Agent, Blocks, Region, TransferState, shm
from dynamo.transfer.job import Control, Job
from dynamo.transfer.metadata import AgentMetadata, ShmOffer
from dynamo.transfer.vector import locate

WITHOUT_PTRACE = str(Path(__file__).with_name("without_ptrace.py"))


def allocated(agent: Agent, data: bytes) -> Region:
    region = agent.allocate(len(data))
    region.view()[:] = data
    return region


def offer_of(agent: Agent) -> ShmOffer:
    offer = AgentMetadata.decode(agent.metadata()).shm
    assert offer is not None
    return offer


def descriptors() -> int:
    """Of allocated memory."""
    return open_descriptors("memfd:dynamo-transfer")


def mappings() -> int:
    """Of allocated memory, the agents' ledgers included."""
    gc.collect()  # agents that other tests have left, tracebacks that hold a copy's frame
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:dynamo-transfer")


async def test_where_the_kernel_forbids_cma() -> None:
    async with program([WITHOUT_PTRACE, "far"]) as far:
        metadata = await far.line("", 30)
        async with program([WITHOUT_PTRACE, "near", metadata]) as near:
            assert await near.line("shared", 30) == "shm shared"
            assert await near.line("own", 30) == "tcp own..."


@pytest.mark.parametrize("write", [False, True])
async def test_both_sides_allocated(write: bool) -> None:
    async with Agent("a", ["shm", "tcp"]) as near, Agent("b", ["shm", "tcp"]) as far:
        ours, theirs = allocated(near, b"ours"), allocated(far, b"them")
        near.add_peer(far.metadata())
        transfer = (near.write if write else near.read)(ours.all(), theirs.all())
        await within(transfer)
        assert transfer.backend == "shm"
        assert bytes(ours.view()) == bytes(theirs.view()) == (b"ours" if write else b"them")


async def test_only_our_side_allocated(caplog: pytest.LogCaptureFixture) -> None:
    """Falls back for that region alone, and says so once."""
    async with Agent("a", ["shm", "tcp"]) as near, Agent("b", ["shm", "tcp"]) as far:
        ours = near.allocate(6)
        shared, own = allocated(far, b"shared"), far.register(b"own...")
        near.add_peer(far.metadata())
        for _ in range(2):
            for theirs, backend in ((own, "tcp"), (shared, "shm")):
                transfer = near.read(ours.all(), theirs.all())
                await within(transfer)
                assert (transfer.backend, bytes(ours.view())) == (backend, bytes(theirs.view()))
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
            "transfers with 'b' go by tcp: shm cannot get at memory of this kind"
        ]


async def test_a_region_is_asked_for_once_and_then_little_is_copied_at_once() -> None:
    async with Agent("a", ["shm"]) as near, Agent("b", ["shm"]) as far:
        ours, theirs = near.allocate(4), allocated(far, b"them")
        near.add_peer(far.metadata())
        states = []
        for _ in range(2):
            transfer = near.read(ours.all(), theirs.all())
            states.append(transfer.state)
            await within(transfer)
        assert states == [TransferState.RUNNING, TransferState.DONE]


async def test_nothing_is_left_of_a_thousand_regions() -> None:
    async def with_agents() -> None:
        async with Agent("a", ["shm"]) as near, Agent("b", ["shm"]) as far:
            ours = near.register(bytearray(4))
            counts = []
            for number in range(1001):
                theirs = allocated(far, number.to_bytes(4, "little"))
                near.add_peer(far.metadata())
                await within(near.read(ours.all(), theirs.all()))
                assert bytes(ours.view()) == bytes(theirs.view())
                far.deregister(theirs)
                if number % 1000 == 0:
                    counts.append((descriptors(), mappings()))
            assert counts[0] == counts[1]
            allocated(far, b"never deregistered")

    before = descriptors(), mappings()
    await with_agents()
    await eventually(lambda: (descriptors(), mappings()) == before)


async def test_memory_is_given_back_with_its_region_though_a_peer_maps_it() -> None:
    async with Agent("a", ["shm"]) as near, Agent("b", ["shm"]) as far:
        ours, theirs = near.register(bytearray(8)), allocated(far, bytes([1]) * (1 << 20))
        near.add_peer(far.metadata())
        blocks = theirs.blocks([0], 8)
        await within(near.read(ours.all(), blocks))
        assert theirs.fd is not None
        copy = os.dup(theirs.fd)
        try:
            assert os.fstat(copy).st_blocks == (1 << 20) // 512
            far.deregister(theirs)
            del theirs
            await eventually(lambda: os.fstat(copy).st_blocks == 0)  # the thread that has handed it out may hold it yet
        finally:
            os.close(copy)
        with pytest.raises(InvalidRequestError, match="not registered any more"):
            await within(near.read(ours.all(), blocks))


async def test_a_region_that_has_taken_another_ones_number() -> None:
    async with Agent("a", ["shm"]) as near, Agent("b", ["shm"]) as far:
        ours, theirs = near.register(bytearray(4)), allocated(far, b"1st.")
        near.add_peer(far.metadata())
        far.deregister(theirs)
        other = allocated(far, b"2nd.")
        assert other.id == theirs.id
        for begin in (near.read, near.write):
            with pytest.raises(InvalidRequestError):
                await within(begin(ours.all(), theirs.all()))
        assert bytes(other.view()) == b"2nd."
        near.add_peer(far.metadata())
        await within(near.read(ours.all(), other.all()))
        assert bytes(ours.view()) == b"2nd."


@pytest.mark.parametrize("greeting", [b"x", b"x" * 16, b"x" * 5000])
async def test_strangers_get_no_descriptor(greeting: bytes) -> None:
    async with Agent("a", ["shm"]) as far:
        allocated(far, b"secret")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(5)
            stranger.connect(b"\0" + offer_of(far).socket.encode())
            stranger.send(greeting)
            assert socket.recv_fds(stranger, 100, 1)[:2] == (b"", [])


async def test_strangers_who_say_nothing_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm, "_HANDSHAKE_TIMEOUT_S", 0.05)
    async with Agent("a", ["shm"]) as far:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(5)
            stranger.connect(b"\0" + offer_of(far).socket.encode())
            assert stranger.recv(1) == b""


async def test_descriptors_only_of_regions_that_are_shared_and_current() -> None:
    async with Agent("a", ["shm"]) as far:
        own, shared = far.register(b"own"), allocated(far, b"shared")
        link = shm.ShmLink(offer_of(far))
        for key in ((own.id, own.key), (shared.id, shared.key + 1), (99, 1)):
            with pytest.raises(InvalidRequestError):
                link._map(key, Control(deadline_s=time.monotonic() + 5))
        link.close()


async def test_somebody_else_at_the_peers_address() -> None:
    async with Agent("a", ["shm"]) as far:
        other = msgspec.structs.replace(offer_of(far), cookie=b"another process.")
        before = descriptors(), mappings()
        with pytest.raises(ConnectionLostError, match="gone"):
            shm.ShmLink(other)
        with pytest.raises(ConnectionLostError, match="connect"):
            shm.ShmLink(msgspec.structs.replace(other, socket="dynamo-transfer-nobody"))
        with pytest.raises(ConnectionLostError):
            shm.ShmLink(msgspec.structs.replace(other, secret=b"wrong"))
        assert (descriptors(), mappings()) == before


async def test_a_peer_that_hands_out_less_than_it_tells_of() -> None:
    async with Agent("a", ["shm"]) as near, Agent("b", ["shm"]) as far:
        ours, theirs = near.register(bytearray(8192)), allocated(far, bytes(8192))
        near.add_peer(far.metadata())
        theirs.size_bytes = 100
        with pytest.raises(ConnectionLostError, match="less memory"):
            await within(near.read(ours.all(), Blocks.of("b", theirs.id, [0], [8192])))


async def test_a_peer_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline holds, and an answer that comes later is not taken for another one."""
    go_on = threading.Event()
    answer = shm.ShmTarget._answer

    def answer_late(self: shm.ShmTarget, sock: socket.socket, key: Any) -> None:
        go_on.wait(10)
        answer(self, sock, key)

    monkeypatch.setattr(shm.ShmTarget, "_answer", answer_late)
    async with Agent("a", ["shm"]) as near, Agent("b", ["shm"]) as far:
        ours, first, second = near.register(bytearray(4)), allocated(far, b"1st."), allocated(far, b"2nd.")
        near.add_peer(far.metadata())
        before = descriptors()
        with pytest.raises(DeadlineExceededError):
            await within(near.read(ours.all(), first.all(), timeout_s=0.2))
        go_on.set()
        await within(near.read(ours.all(), second.all()))
        assert bytes(ours.view()) == b"2nd."
        assert descriptors() == before


@dataclass(frozen=True, slots=True)
class Slowly:
    """Copying stops in its midst: says so, and waits."""

    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def memmove(self, to: int, start: int, size_bytes: int) -> None:
        self.begun.set()
        assert self.go_on.wait(10)
        ctypes.memmove(to, start, size_bytes)


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> Slowly:
    made = Slowly()
    monkeypatch.setattr(shm, "_memmove", made.memmove)
    return made


async def test_deregistered_under_a_running_copy(slowly: Slowly) -> None:
    async with Agent("a", ["shm"]) as near, Agent("b", ["shm"]) as far:
        ours, theirs = near.register(bytearray(4)), allocated(far, b"them")
        near.add_peer(far.metadata())
        transfer = near.read(ours.all(), theirs.all())
        await within(asyncio.to_thread(slowly.begun.wait))
        far.deregister(theirs)
        slowly.go_on.set()
        with pytest.raises(InvalidRequestError, match="not registered any more"):
            await within(transfer)


async def test_closing_under_a_running_copy(slowly: Slowly) -> None:
    async with Agent("b", ["shm"]) as far, Agent("a", ["shm"]) as near:
        theirs, ours = allocated(far, b"them"), near.register(bytearray(4))
        infos = {info.id: info for info in AgentMetadata.decode(far.metadata()).regions}
        link = shm.ShmLink(offer_of(far))
        job = Job(
            write=False,
            local=locate(ours.all(), {ours.id: ours}, write=True),
            remote=locate(theirs.all(), infos, write=False),
            regions=tuple(infos.values()),
            control=Control(deadline_s=time.monotonic() + 10),
        )
        copy = asyncio.create_task(asyncio.to_thread(link.copy, job))
        await within(asyncio.to_thread(slowly.begun.wait))
        before = mappings()
        link.close()
        assert mappings() == before
        slowly.go_on.set()
        with pytest.raises(ConnectionLostError):
            await within(copy)
        del copy
        assert bytes(ours.view()) == b"them"
        await eventually(lambda: mappings() == before - 1)  # the region; the link still has the ledger
        with pytest.raises(ConnectionLostError, match="closed"):
            link.copy(job)
