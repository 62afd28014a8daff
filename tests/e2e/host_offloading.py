"""vLLM's offloading to host memory where there is no accelerator: all of it is vLLM's own but for the copying.

vLLM's spec refuses the CPU (`vllm/v1/kv_offload/cpu/spec.py`, get_worker()), because its copies go by CUDA streams. Its
scheduler's part, which decides what is copied and publishes the KV events, asks for no device.
"""

from collections.abc import Iterator

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class HostOffloadingSpec(CPUOffloadingSpec):  # type: ignore[misc] # vLLM is untyped here
    """For `spec_name` in kv_connector_extra_config, with this module for `spec_module_path`."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        return HostCopies(kv_caches, self.num_chunks, self.blocks_per_chunk)


class HostCopies(OffloadingWorker):  # type: ignore[misc]
    """Copies blocks at once, for models with one kind of attention."""

    def __init__(self, kv_caches: CanonicalKVCaches, chunks: int, blocks_per_chunk: int) -> None:
        self._blocks_per_chunk = blocks_per_chunk
        self._device = [cache.tensor for cache in kv_caches.tensors]  # by block
        self._host = [torch.empty((chunks, blocks_per_chunk, *t.shape[1:]), dtype=t.dtype) for t in self._device]
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: CPULoadStoreSpec) -> bool:
        for block, place in self._places(src_spec, dst_spec):
            for device, host in zip(self._device, self._host, strict=True):
                host[place] = device[block]
        self._finished.append(TransferResult(job_id, success=True))
        return True

    def submit_load(self, job_id: int, src_spec: CPULoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        for block, place in self._places(dst_spec, src_spec):
            for device, host in zip(self._device, self._host, strict=True):
                device[block] = host[place]
        self._finished.append(TransferResult(job_id, success=True))
        return True

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Nothing is ever under way."""

    def _places(self, blocks: GPULoadStoreSpec, chunks: CPULoadStoreSpec) -> Iterator[tuple[int, tuple[int, int]]]:
        """Each block, and its place in host memory: its chunk and its position there. The first chunk may be shared."""
        first = blocks.block_indices[0] % self._blocks_per_chunk
        for position, block in enumerate(blocks.block_ids, first):
            chunk, rest = divmod(position, self._blocks_per_chunk)
            yield int(block), (int(chunks.block_ids[chunk]), rest)
