"""Copies between a KV cache in main memory and the block manager's, in a thread of its own.

NumPy copies without the interpreter's lock and in one thread, whatever the engine has set for OpenMP.
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dynamo.kvbm.client import MappedPool
from dynamo.kvbm.jobs import Copied, Load, Save
from dynamo.kvbm.rank import RankPart
from dynamo.transfer.memory import view_of

logger = logging.getLogger(__name__)

Bytes = NDArray[np.uint8]


def cpu_copier(cache: Sequence[torch.Tensor], pool: MappedPool, part: RankPart) -> "CpuCopier":
    """`cache` as kvbm_layout.cache_parts makes it."""
    memory = np.frombuffer(view_of(pool.address, pool.slots * pool.slot_bytes, pool), np.uint8)
    slots = memory.reshape(pool.slots, pool.slot_bytes)[:, part.start : part.start + part.size_bytes]
    return CpuCopier([each.numpy() for each in cache], slots)


class CpuCopier:
    """Loads go first: somebody waits for them."""

    def __init__(self, cache: Sequence[Bytes], slots: Bytes) -> None:
        """`cache`: parts of [layers, blocks, bytes]; `slots`: the rank's part of each, [slots, bytes of a block]."""
        self._cache = cache
        self._slots = slots
        self._changed = threading.Condition()
        self._saves: deque[Save] = deque()
        self._loads: deque[Load] = deque()
        self._unsaved: set[int] = set()  # saves that have not read their blocks yet
        self._done: list[Copied] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="kvbm-copier", daemon=True)
        self._thread.start()

    def save(self, job: Save) -> None:
        with self._changed:
            self._unsaved.add(job.id)
            self._saves.append(job)
            self._changed.notify_all()

    def load(self, job: Load) -> None:
        with self._changed:
            self._loads.append(job)
            self._changed.notify_all()

    def fence(self, jobs: Sequence[int]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._unsaved.isdisjoint(jobs))  # the thread ends each that it takes

    def take_done(self) -> list[Copied]:
        with self._changed:
            done, self._done = self._done, []
            return done

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # it is slower then, but must run: steps wait for it
            os.sched_setaffinity(0, _cpus())
        while (job := self._next()) is not None:
            begun_s = time.monotonic()
            ok = self._copy(job)
            copied = Copied(job.id, ok, time.monotonic() - begun_s)
            with self._changed:
                self._unsaved.discard(job.id)
                self._done.append(copied)
                self._changed.notify_all()

    def _next(self) -> Save | Load | None:
        """None after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._loads or self._saves or self._closed)
            if self._loads:
                return self._loads.popleft()
            return self._saves.popleft() if self._saves else None

    def _copy(self, job: Save | Load) -> bool:
        try:
            for block, slot in zip(job.blocks, job.slots, strict=True):
                self._copy_block(block, slot, out=isinstance(job, Save))
        except (IndexError, ValueError):  # the thread must go on: requests wait for what it ends
            logger.exception("a copy between the KV cache and the block manager failed")
            return False
        return True

    def _copy_block(self, block: int, slot: int, *, out: bool) -> None:
        start = 0
        for part in self._cache:
            layers = part[:, block]
            image = self._slots[slot, start : start + layers.size].reshape(layers.shape)
            start += layers.size
            if out:
                np.copyto(image, layers)
            else:
                np.copyto(layers, image)


def _cpus() -> set[int]:
    """All that the process may use: the thread would inherit the one that its creator was bound to."""
    tasks = [int(task) for task in os.listdir("/proc/self/task")]
    found: set[int] = set()
    for task in tasks:
        try:
            found |= os.sched_getaffinity(task)
        except ProcessLookupError:  # it has just ended
            continue
    return found
