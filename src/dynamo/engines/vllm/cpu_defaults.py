"""Settings that make vLLM work well on a machine without an accelerator."""

import logging
import os
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from dynamo.engines.vllm.environment import FEW_CPUS, bind_threads
from dynamo.protocols.model_card import WorkerType

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

logger = logging.getLogger(__name__)

PARSER_DEFAULTS = {"enforce_eager": True}  # compiling takes minutes and gains little

_BLOCK_SIZE = 32  # tokens; vLLM's 128 would hide short prefix hits, and its CPU kernels need a multiple of 32
_KV_CACHE_BYTES = 1 << 30
_CONTEXT_LENGTH = 2048  # tokens; longer prompts take many seconds


def choose(
    args: "AsyncEngineArgs", environ: MutableMapping[str, str], role: WorkerType = WorkerType.Aggregated
) -> None:
    """Fills in what the user has not set, and logs the outcome."""
    if args.block_size is None:
        args.block_size = _BLOCK_SIZE
    if args.kv_cache_memory_bytes is None and not _cache_is_sized(args, environ):
        args.kv_cache_memory_bytes = _KV_CACHE_BYTES
    if args.max_model_len is None and args.create_model_config().max_model_len > _CONTEXT_LENGTH:
        args.max_model_len = _CONTEXT_LENGTH
    if args.tensor_parallel_size * args.pipeline_parallel_size == 1:
        bind_threads(environ, _cpus(role), args.data_parallel_size)
    logger.info("no accelerator, vLLM runs on the CPU: %s", _description(args, environ))


def _cpus(role: WorkerType) -> list[int]:
    """On a small machine the two halves of disaggregated serving keep out of each other's way.

    Threads that share a CPU with others let those wait that have a CPU to themselves: all are slower for it.
    """
    available = sorted(os.sched_getaffinity(0))
    if role is WorkerType.Aggregated or not 2 <= len(available) <= FEW_CPUS:
        return available
    half = len(available) // 2
    return available[:half] if role is WorkerType.Prefill else available[half:]


def _description(args: "AsyncEngineArgs", environ: MutableMapping[str, str]) -> str:
    cache, context = args.kv_cache_memory_bytes, args.max_model_len
    return ", ".join(
        [
            f"block size {args.block_size}",
            f"KV cache of {cache / 2**30:.1f} GiB" if cache else "KV cache sized by vLLM",
            f"context of {context} tokens" if context else "the model's whole context",
            "eager" if args.enforce_eager else "compiled",
            f"threads on CPUs {environ.get('VLLM_CPU_OMP_THREADS_BIND', 'that vLLM chooses')}",
        ]
    )


def _cache_is_sized(args: "AsyncEngineArgs", environ: MutableMapping[str, str]) -> bool:
    """Whether the user has given the size in one of vLLM's other ways."""
    return (
        "VLLM_CPU_KVCACHE_SPACE" in environ
        or args.num_gpu_blocks_override is not None
        or args.gpu_memory_utilization != type(args).gpu_memory_utilization
    )
