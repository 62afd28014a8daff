"""Where a block's bytes lie in vLLM's KV cache, and which caches the block manager can serve."""

import os
from typing import TYPE_CHECKING

import torch
import vllm
from vllm.platforms import current_platform
from vllm.v1.core.kv_cache_utils import DEFAULT_NONE_HASH_SEED
from vllm.v1.kv_cache_interface import FullAttentionSpec, UniformTypeKVCacheSpecs

from dynamo.engines.vllm.kvbm_settings import KvbmSettings
from dynamo.errors import ConfigError
from dynamo.kvbm.namespace import namespace
from dynamo.protocols.kvbm import PoolSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig as EngineConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

HASHES = ("sha256", "sha256_cbor")


def check_engine(config: "EngineConfig") -> None:
    """Raises ConfigError for what rules the block manager out and shows before the engine starts."""
    cache, parallel = config.cache_config, config.parallel_config
    if not cache.enable_prefix_caching:
        raise ConfigError("--kvbm-host-gb needs prefix caching, which is off")
    if cache.prefix_caching_hash_algo not in HASHES:
        raise ConfigError(
            f"--kvbm-host-gb needs --prefix-caching-hash-algo {' or '.join(HASHES)}: "
            f"by {cache.prefix_caching_hash_algo}, clients' blocks could be made to collide"
        )
    if cache.prefix_match_unit not in (None, cache.block_size):
        raise ConfigError("--kvbm-host-gb knows whole blocks only: leave out --prefix-match-unit")
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise ConfigError("--kvbm-host-gb does not go with context parallelism")


def check_cache(cache: "KVCacheConfig") -> None:
    """Raises ConfigError for models whose cache is not one table of blocks that stay as they were computed."""
    specs = [spec for group in cache.kv_cache_groups for spec in _specs(group.kv_cache_spec)]
    if len(cache.kv_cache_groups) != 1 or not all(isinstance(spec, FullAttentionSpec) for spec in specs):
        raise ConfigError("--kvbm-host-gb serves models with full attention only, and this one has other layers too")
    if cache.needs_kv_cache_zeroing or any(tensor.host_resident for tensor in cache.kv_cache_tensors):
        raise ConfigError("--kvbm-host-gb does not serve this kind of KV cache")


def pool_spec(config: "EngineConfig", cache: "KVCacheConfig", settings: KvbmSettings) -> PoolSpec:
    """The same at the scheduler and at all ranks. Ranks hold parts of equal size: ConfigError where they cannot."""
    model, parallel = config.model_config, config.parallel_config
    if parallel.pipeline_parallel_size > 1 and model.get_total_num_hidden_layers() % parallel.pipeline_parallel_size:
        raise ConfigError("--kvbm-host-gb needs a number of layers that pipeline parallelism divides evenly")
    block_tokens = _first_spec(cache).block_size
    ranks = parallel.world_size
    found = namespace(
        {
            "model": settings.model,
            "model config": model.hf_config.to_json_string(use_diff=False),
            "load format": str(config.load_config.load_format),
            "seed of dummy weights": model.seed if config.load_config.load_format == "dummy" else "",
            "dtype": str(model.dtype),
            "quantization": str(model.quantization),
            "context": model.max_model_len,  # some kinds of rotary embedding depend on it
            "cache dtype": str(config.cache_config.cache_dtype),
            "cache layout": str(cache.kv_cache_layout),
            "cache spec": repr(_first_spec(cache)),
            "block bytes": block_bytes(cache),
            "tensor parallel": parallel.tensor_parallel_size,
            "pipeline parallel": parallel.pipeline_parallel_size,
            "attention": str(config.attention_config.backend),
            "hash": config.cache_config.prefix_caching_hash_algo,
            "hash seed": os.environ.get("PYTHONHASHSEED", DEFAULT_NONE_HASH_SEED),
            "engine": f"vllm {vllm.__version__}",
            "device": _device(),
        },
        f"{settings.model_name}, {str(model.dtype).removeprefix('torch.')}, blocks of {block_tokens} tokens,"
        f" {ranks} rank{'s' * (ranks > 1)}, vLLM {vllm.__version__}",
    )
    return PoolSpec(
        namespace=found.digest,
        description=found.description,
        rank_bytes=block_bytes(cache),
        ranks=ranks,
        block_tokens=block_tokens,
    )


def block_bytes(cache: "KVCacheConfig") -> int:
    """Of a block at one rank, all layers together. vLLM's tensors are views of one allocation."""
    return int(cache.kv_cache_tensors[0].size // cache.num_blocks)


def cache_parts(cache: "KVCacheConfig", tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The memory behind vLLM's tensors as bytes, [layers, blocks, bytes]; a block's image is its row of each part.

    Raises ConfigError where that does not account for all of a block.
    """
    parts = []
    for placed in cache.kv_cache_tensors:
        memory = torch.empty(0, dtype=torch.uint8, device=tensors[placed.layers[0]].device)
        memory.set_(tensors[placed.layers[0]].untyped_storage())
        if placed.layer_stride < placed.block_stride * cache.num_blocks:  # a block's layers lie together
            parts = [memory[: placed.size].view(1, cache.num_blocks, -1)]
            break
        end = placed.offset + len(placed.layers) * placed.layer_stride
        parts.append(memory[placed.offset : end].view(-1, cache.num_blocks, placed.block_stride))
    if sum(part.shape[0] * part.shape[2] for part in parts) != block_bytes(cache):
        raise ConfigError("--kvbm-host-gb does not know this layout of the KV cache")
    return parts


def _specs(spec: "KVCacheSpec") -> "list[KVCacheSpec]":
    return list(spec.kv_cache_specs.values()) if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]


def _first_spec(cache: "KVCacheConfig") -> "KVCacheSpec":
    """Of several alike, vLLM shows its scheduler only the first."""
    return _specs(cache.kv_cache_groups[0].kv_cache_spec)[0]


def _device() -> str:
    """As far as kernels, and with them layouts, depend on it."""
    if current_platform.is_cpu():
        return f"cpu {current_platform.get_cpu_architecture()} amx={torch.cpu._is_amx_tile_supported()}"
    return f"{current_platform.device_type} {current_platform.get_device_capability()}"
