"""Blocks come back from slots bit for bit, whatever the cache's layout; the same for each kind of copier."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from dynamo.engines.vllm.kvbm_copier import CpuCopier
from dynamo.kvbm.jobs import Copied, Load, Save
from dynamo.kvbm.rank import Copier, RankPart
from dynamo.testing.waiting import DEADLINE_S

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

SLOTS, BLOCKS, BLOCK_BYTES = 8, 12, 1536
LAYOUTS = {
    "layers apart": [(6, BLOCKS, 256)],
    "layers together": [(1, BLOCKS, 1536)],
    "two kinds of layers": [(4, BLOCKS, 128), (2, BLOCKS, 512)],
}
PART = RankPart(rank=1, size_bytes=BLOCK_BYTES)
Make = Callable[[list[torch.Tensor], torch.Tensor], Copier]


def on_cpu(cache: list[torch.Tensor], slots: torch.Tensor) -> Copier:
    return CpuCopier([part.numpy() for part in cache], slots.numpy()[:, PART.start : PART.start + PART.size_bytes])


def on_cuda(cache: list[torch.Tensor], slots: torch.Tensor) -> Copier:
    from dynamo.engines.vllm.kvbm_cuda_copier import CudaCopier

    return CudaCopier(cache, slots, PART)


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED HERE: the CUDA copier, there is no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=LAYOUTS)
def cache(request: pytest.FixtureRequest, device: str) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randint(256, shape, dtype=torch.uint8).to(device) for shape in LAYOUTS[request.param]]


@pytest.fixture
def slots() -> torch.Tensor:
    return torch.zeros((SLOTS, 4096), dtype=torch.uint8)


@pytest.fixture
def copier(device: str, cache: list[torch.Tensor], slots: torch.Tensor) -> Iterator[Copier]:
    made = (on_cpu if device == "cpu" else on_cuda)(cache, slots)
    yield made
    made.close()


def done(copier: Copier, count: int) -> list[Copied]:
    """The jobs that end next; they tell nobody, like those of a GPU."""
    ended: list[Copied] = []
    deadline_s = time.monotonic() + DEADLINE_S
    while len(ended) < count and time.monotonic() < deadline_s:
        ended += copier.take_done()
    return ended


def image(cache: list[torch.Tensor], block: int) -> bytes:
    return b"".join(part[:, block].contiguous().cpu().numpy().tobytes() for part in cache)


def test_there_and_back(copier: Copier, cache: list[torch.Tensor], slots: torch.Tensor) -> None:
    before = [image(cache, block) for block in range(BLOCKS)]
    copier.save(Save(1, "", (3, 0, 11), (5, 1, 7)))
    (saved,) = done(copier, 1)
    assert (saved.id, saved.ok) == (1, True)
    assert slots[5, PART.start : PART.start + BLOCK_BYTES].numpy().tobytes() == before[3]
    written = {5, 1, 7}
    rest = slots.clone()
    rest[list(written), PART.start : PART.start + BLOCK_BYTES] = 0
    assert not rest.any()  # headers, other ranks' parts and other slots are as they were

    copier.load(Load(2, "", "request", (4, 2, 0), (5, 1, 7)))
    (loaded,) = done(copier, 1)
    assert (loaded.id, loaded.ok) == (2, True)
    after = [image(cache, block) for block in range(BLOCKS)]
    expected = {**dict(enumerate(before)), 4: before[3], 2: before[0], 0: before[11]}
    assert after == list(expected.values())


def test_a_fence_is_passed_when_the_blocks_were_read(
    copier: Copier, cache: list[torch.Tensor], slots: torch.Tensor
) -> None:
    before = image(cache, 6)
    for job in range(40):
        copier.save(Save(job, "", (6,) * SLOTS, tuple(range(SLOTS))))
    copier.fence([39])
    for part in cache:
        part[:, 6] = 0
    assert {each.ok for each in done(copier, 40)} == {True}
    for slot in range(SLOTS):
        assert slots[slot, PART.start : PART.start + BLOCK_BYTES].numpy().tobytes() == before


class Gated(CpuCopier):
    """Copies when it may."""

    gate = threading.Semaphore(0)

    def _copy(self, job: Save | Load) -> bool:
        return self.gate.acquire(timeout=DEADLINE_S) and super()._copy(job)


def test_loads_go_first() -> None:
    """In the thread that copies for CPUs."""
    copier = Gated([np.zeros((1, BLOCKS, 64), np.uint8)], np.zeros((SLOTS, 64), np.uint8))
    copier.save(Save(1, "", (0,), (0,)))
    copier.save(Save(2, "", (0,), (0,)))
    copier.load(Load(3, "", "request", (1,), (0,)))
    Gated.gate.release(3)
    ended = done(copier, 3)
    copier.close()
    assert all(each.ok for each in ended)
    order = [each.id for each in ended]
    assert order.index(3) < order.index(2)


def test_a_copy_that_fails_is_told_and_the_next_goes_on() -> None:
    copier = CpuCopier([np.zeros((1, BLOCKS, 64), np.uint8)], np.zeros((SLOTS, 64), np.uint8))
    copier.save(Save(1, "", (BLOCKS,), (0,)))
    copier.save(Save(2, "", (0,), (0,)))
    assert [(each.id, each.ok) for each in done(copier, 2)] == [(1, False), (2, True)]
    copier.close()


def test_it_copies_where_it_may_not_choose_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int, cpus: set[int]) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "sched_setaffinity", refused)
    copier = CpuCopier([np.zeros((1, BLOCKS, 64), np.uint8)], np.zeros((SLOTS, 64), np.uint8))
    copier.save(Save(1, "", (0,), (0,)))
    assert [each.ok for each in done(copier, 1)] == [True]
    copier.close()


def test_closing_finishes_what_has_begun() -> None:
    slots = np.zeros((SLOTS, 64), np.uint8)
    copier = CpuCopier([np.full((1, BLOCKS, 64), 7, np.uint8)], slots)
    for job in range(SLOTS):
        copier.save(Save(job, "", (0,), (job,)))
    copier.close()
    copier.close()
    assert (slots == 7).all()
    assert len(copier.take_done()) == SLOTS


KERNEL = """
import torch
from dynamo.engines.vllm import kvbm_kernel
torch.manual_seed(2)
for shapes in ([(3, 9, 64)], [(1, 9, 8200)], [(2, 9, 1024), (1, 9, 8)]):
    parts = [torch.randint(256, shape, dtype=torch.uint8) for shape in shapes]
    assert kvbm_kernel.fits(parts)
    blocks = torch.tensor([8, 0, 3])
    size = sum(layers * block_bytes for layers, _, block_bytes in shapes)
    images = torch.zeros((3, size), dtype=torch.uint8)
    kvbm_kernel.move(parts, blocks, images, gather=True)
    for image, block in zip(images, blocks):
        assert torch.equal(image, torch.cat([part[:, block].flatten() for part in parts]))
    others = [torch.zeros_like(part) for part in parts]
    kvbm_kernel.move(others, blocks, images, gather=False)
    for part, other in zip(parts, others):
        expected = torch.zeros_like(part)
        expected[:, blocks] = part[:, blocks]
        assert torch.equal(other, expected)
assert not kvbm_kernel.fits([torch.zeros((1, 2, 12), dtype=torch.uint8)])
"""


def test_kernel_as_triton_interprets_it() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    pytest.importorskip("triton")
    environ = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", KERNEL],
        env=environ,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
