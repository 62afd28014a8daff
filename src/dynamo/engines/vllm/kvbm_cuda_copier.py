"""Copies between a KV cache in a GPU's memory and the block manager's, on streams of their own.

A block's layers are gathered into one piece by a kernel, and that piece is copied over the bus at once; the other way
round likewise. Host memory is pinned piece by piece, as slots in it are first used: what is pinned is taken.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dynamo.errors import InternalError
from dynamo.kvbm.client import MappedPool
from dynamo.kvbm.jobs import Copied, Load, Save
from dynamo.kvbm.rank import RankPart
from dynamo.transfer.memory import view_of

try:
    from dynamo.engines.vllm import kvbm_kernel
except ImportError:  # no Triton for this platform
    kvbm_kernel = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_PIN_BYTES = 256 << 20
_STAGED_BLOCKS = 16  # of a job, at a time


def cuda_copier(cache: list[torch.Tensor], pool: MappedPool, part: RankPart) -> "CudaCopier":
    """`cache` as kvbm_layout.cache_parts makes it."""
    memory = torch.from_numpy(np.frombuffer(view_of(pool.address, pool.slots * pool.slot_bytes, pool), np.uint8))
    slots = memory.view(pool.slots, pool.slot_bytes)
    return CudaCopier(cache, slots, part)


@dataclass(frozen=True, slots=True)
class _Running:
    job: int
    begun: torch.cuda.Event
    read: torch.cuda.Event  # its source is free
    ended: torch.cuda.Event


class CudaCopier:
    """The device does it all; this only says so, and looks how far it is."""

    def __init__(self, cache: list[torch.Tensor], slots: torch.Tensor, part: RankPart) -> None:
        """`cache`: parts of [layers, blocks, bytes] of the GPU; `slots`: host memory, whole slots."""
        self._cache = cache
        self._slots = slots
        self._images = slots[:, part.start : part.start + part.size_bytes]
        self._pinned: set[int] = set()
        self._pin_slots = max(1, _PIN_BYTES // slots.shape[1])
        device = cache[0].device
        self._save_stream, self._load_stream = torch.cuda.Stream(device), torch.cuda.Stream(device)
        staging = torch.empty((2, _STAGED_BLOCKS, part.size_bytes), dtype=torch.uint8, device=device)
        self._save_staging, self._load_staging = staging[0], staging[1]
        self._fused = kvbm_kernel is not None and kvbm_kernel.fits(cache) and part.size_bytes % 8 == 0
        self._running: list[_Running] = []
        self._failed: list[int] = []

    def save(self, job: Save) -> None:
        stream = self._save_stream
        stream.wait_stream(torch.cuda.current_stream())  # what earlier steps write
        with torch.cuda.stream(stream):
            self._run(job, self._save_staging, stream, out=True)

    def load(self, job: Load) -> None:
        stream = self._load_stream
        stream.wait_stream(torch.cuda.current_stream())  # the last steps of those who had the blocks before
        with torch.cuda.stream(stream):
            self._run(job, self._load_staging, stream, out=False)

    def fence(self, jobs: Sequence[int]) -> None:
        for running in self._running:
            if running.job in jobs:
                torch.cuda.current_stream().wait_event(running.read)

    def take_done(self) -> list[Copied]:
        done = [Copied(job, ok=False) for job in self._failed]
        self._failed = []
        running = []
        for each in self._running:
            if each.ended.query():
                done.append(Copied(each.job, ok=True, seconds=each.begun.elapsed_time(each.ended) / 1e3))
            else:
                running.append(each)
        self._running = running
        return done

    def close(self) -> None:
        self._save_stream.synchronize()
        self._load_stream.synchronize()
        runtime = torch.cuda.cudart()
        for piece in self._pinned:
            runtime.cudaHostUnregister(self._slots[piece * self._pin_slots].data_ptr())
        self._pinned.clear()

    def _run(self, job: Save | Load, staging: torch.Tensor, stream: torch.cuda.Stream, *, out: bool) -> None:
        begun, read, ended = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        try:
            for slot in job.slots:
                self._pin(slot)
        except InternalError:
            logger.exception("the block manager's memory cannot be pinned")
            self._failed.append(job.id)
            return
        begun.record(stream)
        for at in range(0, len(job.blocks), _STAGED_BLOCKS):
            blocks, slots = job.blocks[at : at + _STAGED_BLOCKS], job.slots[at : at + _STAGED_BLOCKS]
            images = staging[: len(blocks)]
            if out:
                self._page(blocks, images, gather=True)
                for image, slot in zip(images, slots, strict=True):
                    self._images[slot].copy_(image, non_blocking=True)
            else:
                for image, slot in zip(images, slots, strict=True):
                    image.copy_(self._images[slot], non_blocking=True)
                self._page(blocks, images, gather=False)
        read.record(stream)
        ended.record(stream)
        self._running.append(_Running(job.id, begun, read, ended))

    def _page(self, blocks: Sequence[int], images: torch.Tensor, *, gather: bool) -> None:
        """Between the cache's pages and their images, both in the GPU's memory."""
        if self._fused:
            numbers = torch.tensor(blocks, dtype=torch.int64).pin_memory().to(images.device, non_blocking=True)
            kvbm_kernel.move(self._cache, numbers, images, gather=gather)
            return
        for block, image in zip(blocks, images, strict=True):
            start = 0
            for part in self._cache:
                page = part[:, block]
                whole = image[start : start + page.numel()].view(page.shape)
                start += page.numel()
                if gather:
                    whole.copy_(page)
                else:
                    page.copy_(whole)

    def _pin(self, slot: int) -> None:
        """So that copies go at full speed and wait for nobody. Raises InternalError."""
        piece = slot // self._pin_slots
        if piece in self._pinned:
            return
        slots = self._slots[piece * self._pin_slots : (piece + 1) * self._pin_slots]
        if error := int(torch.cuda.cudart().cudaHostRegister(slots.data_ptr(), slots.numel(), 0)):
            raise InternalError(f"cudaHostRegister: error {error}")
        self._pinned.add(piece)
