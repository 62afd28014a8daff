"""What a started vLLM says about itself."""

from typing import TYPE_CHECKING

from dynamo.engines.base import EngineInfo
from dynamo.protocols.model_card import EngineFeature, RuntimeLimits

if TYPE_CHECKING:
    from vllm.config import VllmConfig as EngineConfig


def engine_info(config: "EngineConfig") -> EngineInfo:
    """The engine's context, sizes and abilities; complete only once vLLM has counted its KV blocks."""
    return EngineInfo(
        context_length=config.model_config.max_model_len,
        features=_features(config),
        limits=RuntimeLimits(
            kv_block_size=config.cache_config.block_size,
            total_kv_blocks=config.cache_config.num_gpu_blocks,  # of all ranks together
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            data_parallel_size=config.parallel_config.data_parallel_size,
        ),
    )


def _features(config: "EngineConfig") -> frozenset[EngineFeature]:
    """All, but for what vLLM refuses in this configuration."""
    missing = set()
    if config.model_config.skip_tokenizer_init:
        missing.add(EngineFeature.GUIDED_DECODING)
    if config.cache_config.kv_sharing_fast_prefill:
        missing.add(EngineFeature.PROMPT_LOGPROBS)
    if config.speculative_config is not None:
        missing.add(EngineFeature.LOGIT_BIAS)
    return frozenset(EngineFeature) - missing
