"""What is peculiar to NIXL: when it is taken, regions that come and go, peers that hang, memory of GPUs."""

import base64
import contextlib
import importlib
import signal
from pathlib import Path
from typing import Any

import pytest

from dynamo.errors import (
    ConfigError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidRequestError,
    UnsupportedFeatureError,
)
from dynamo.testing import within
from dynamo.testing.program import program
from dynamo.transfer import Agent, Blocks, backends, nixl, nixl_library
from dynamo.transfer.regions import Regions
from tests.transfer.test_agent import Tensor

PEER = Path(__file__).with_name("peer.py")
MIB = 1 << 20
needs_nixl = pytest.mark.skipif(
    not nixl_library.is_installed(), reason=f"NIXL is not installed: {nixl_library.INSTALL}"
)


def not_installed(_name: str) -> Any:
    raise ModuleNotFoundError("No module named 'nixl'", name="nixl")


async def test_asked_for_and_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", not_installed)
    agent = Agent("a", ["nixl", "tcp"])
    with pytest.raises(ConfigError, match="pip install --no-deps nixl"):
        await agent.start()
    await agent.close()


@pytest.mark.parametrize(
    ("hardware", "installed", "taken"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_taken_by_itself_where_it_is_of_use(
    hardware: bool, installed: bool, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib, "import_module", (lambda _name: None) if installed else not_installed)
    monkeypatch.setattr(nixl, "_RDMA", tmp_path)
    monkeypatch.setattr(nixl_library, "_DEVICES", tmp_path / "none")
    if hardware:
        (tmp_path / "mlx5_0").touch()
    names = [each.name for each in backends.backends_of_use()]
    assert ("nixl" in names) == taken
    assert {"cma", "tcp"} < {*names, "nixl"}


def test_defaults_for_ucx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixl_library, "_DEVICES", tmp_path)
    environ: dict[str, str] = {}
    nixl_library.set_defaults(environ)
    assert environ == {}  # of variables that are of no use UCX warns on stdout
    (tmp_path / "nvidia0").touch()
    nixl_library.set_defaults(environ)
    assert environ == {"UCX_CUDA_IPC_ENABLE_GET_ZCOPY": "y"}
    environ = {"UCX_CUDA_IPC_ENABLE_GET_ZCOPY": "n"}
    nixl_library.set_defaults(environ)
    assert environ == {"UCX_CUDA_IPC_ENABLE_GET_ZCOPY": "n"}


async def test_gpus_are_out_of_the_reach_of_other_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensor lies in host memory in truth: who looks at it does no harm but would succeed."""
    monkeypatch.setattr(Agent, "_set_key", lambda *_: None)
    async with Agent("a", ["cma", "tcp"]) as near, Agent("b", ["cma", "tcp"]) as far:
        host, gpu = near.register(bytearray(8)), near.register(Tensor(bytearray(8), "cuda"))
        theirs, their_gpu = far.register(bytearray(8)), far.register(Tensor(bytearray(8), "cuda"))
        near.add_peer(far.metadata())
        for local, remote in ((host, their_gpu), (gpu, theirs), (gpu, their_gpu)):
            with pytest.raises(ConnectionLostError, match="no transfer backend reaches"):
                await within(near.read(local.all(), remote.all()))
        with pytest.raises(UnsupportedFeatureError):
            near.read(host.all(), their_gpu.all(), checksum=True)
        with pytest.raises(UnsupportedFeatureError):
            gpu.view()
        with pytest.raises(InvalidRequestError, match="one GPU"):
            near.read(host.blocks([0], 4) + gpu.blocks([0], 4), theirs.blocks([0, 4], 4))


@needs_nixl
async def test_regions_that_come_later_and_again() -> None:
    memory = bytearray(1000)
    async with Agent("a", ["nixl"]) as near, Agent("b", ["nixl"]) as far:
        ours = near.register(bytearray(1000))
        near.add_peer(far.metadata())
        for number in range(1, 4):
            theirs = far.register(memory)  # at the same place as the one before
            memory[:] = bytes([number]) * 1000
            near.add_peer(far.metadata())
            await within(near.read(ours.all(), theirs.all()))
            assert ours.view() == memory
            far.deregister(theirs)
            with pytest.raises(InvalidRequestError, match="not registered"):
                await within(near.read(ours.all(), theirs.all()))
        theirs = far.register(memory)
        near.add_peer(far.metadata())
        ours.view()[:] = b"x" * 1000
        await within(near.write(ours.all(), theirs.all()))
        assert memory == b"x" * 1000


@needs_nixl
async def test_regions_that_take_the_place_of_others_meanwhile() -> None:
    """Both are registered, one is a part of the other; each makes NIXL forget the other."""
    memory = bytearray(b"x") * (64 * MIB)
    async with Agent("a", ["nixl"]) as near, Agent("b", ["nixl"]) as far:
        first = far.register(memory)
        near.add_peer(far.metadata())
        ours = [near.register(bytearray(size_bytes)) for size_bytes in (64 * MIB, MIB)]
        reading = near.read(ours[0].all(), first.all())
        second = far.register(memoryview(memory)[:MIB])
        near.add_peer(far.metadata())
        await within(near.read(ours[1].all(), second.all()))
        await within(reading)
        assert ours[0].view() == memory
        assert ours[1].view() == memory[:MIB]


@needs_nixl
async def test_a_peer_that_hangs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Over TCP it takes part in each transfer. What it sends when it goes on does not come any more."""
    monkeypatch.setenv("UCX_TLS", "tcp")
    monkeypatch.setattr(nixl_library, "_GRACE_S", 0.2)
    async with (
        program([str(PEER), str(64 * MIB), "nixl"]) as process,
        Agent("near", ["nixl"]) as near,
        Agent("other", ["nixl"]) as other,
    ):
        metadata = base64.b64decode(await process.line("", 30))
        near.add_peer(metadata)
        other.add_peer(metadata)
        memory = bytearray(64 * MIB)
        region = near.register(memory)
        far = Blocks.of("far", 0, [0], [64 * MIB])
        await within(near.read(region.all(), far))
        memory[:] = bytes(64 * MIB)
        process.signal(signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(nixl.NixlLink, "_check", lambda *_: None)  # or it would hang there, before it asks for bytes
            with pytest.raises(DeadlineExceededError):
                await within(near.read(region.all(), far, timeout_s=0.2))
        assert "NIXL is shut down in this agent" in caplog.text
        kept = bytes(memory)
        process.signal(signal.SIGCONT)
        with contextlib.suppress(ConnectionLostError):  # UCX may end the peer, when it finds who it answers gone
            await within(other.read(other.register(bytearray(64 * MIB)).all(), far))  # longer than what it owes `near`
        assert memory == kept
        with pytest.raises(ConnectionLostError):
            await within(near.read(region.all(), far))
        near.deregister(region)


def test_memory_of_gpus_is_not_handed_to_backends_that_copy() -> None:
    regions = Regions("a", lambda *_: None)
    region = regions.register(Tensor(bytearray(8), "cuda"))
    with pytest.raises(InvalidRequestError, match="GPU"):
        regions.admit(((region.id, region.key),), b"", False)


@needs_nixl
async def test_gpus_that_are_not_there() -> None:
    async with Agent("a", ["nixl"]) as near:
        with pytest.raises(UnsupportedFeatureError, match="GPU 0"):
            near.register(Tensor(bytearray(4), "cuda"))
        assert near.register(bytearray(4)).id == 0


@needs_nixl
async def test_memory_of_gpus() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    async with Agent("a", ["nixl"]) as near, Agent("b", ["nixl"]) as far:
        theirs = torch.arange(1 << 20, dtype=torch.int32, device="cuda")
        ours, host = torch.zeros_like(theirs), torch.zeros(1 << 20, dtype=torch.int32)
        remote = far.register(theirs)
        near.add_peer(far.metadata())
        for tensor in (ours, host):
            await within(near.read(near.register(tensor).all(), remote.all()))
            assert torch.equal(tensor.cpu(), theirs.cpu())
