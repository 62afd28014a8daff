from types import SimpleNamespace

from dynamo.engines.base import EngineInfo
from dynamo.engines.vllm.info import engine_info
from dynamo.protocols.model_card import EngineFeature, RuntimeLimits


def config(*, skip_tokenizer: bool = False, fast_prefill: bool = False, speculative: object = None) -> SimpleNamespace:
    """The part of vllm.config.VllmConfig that is read."""
    return SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=2048, skip_tokenizer_init=skip_tokenizer),
        cache_config=SimpleNamespace(block_size=32, num_gpu_blocks=1456, kv_sharing_fast_prefill=fast_prefill),
        scheduler_config=SimpleNamespace(max_num_seqs=128, max_num_batched_tokens=4096),
        parallel_config=SimpleNamespace(data_parallel_size=2),
        speculative_config=speculative,
    )


def test_everything_is_supported_by_default() -> None:
    assert engine_info(config()) == EngineInfo(
        context_length=2048,
        features=frozenset(EngineFeature),
        limits=RuntimeLimits(
            kv_block_size=32,
            total_kv_blocks=1456,
            max_num_seqs=128,
            max_num_batched_tokens=4096,
            data_parallel_size=2,
        ),
    )


def test_settings_that_cost_a_feature() -> None:
    everything = frozenset(EngineFeature)

    assert everything - engine_info(config(skip_tokenizer=True)).features == {EngineFeature.GUIDED_DECODING}
    assert everything - engine_info(config(fast_prefill=True)).features == {EngineFeature.PROMPT_LOGPROBS}
    assert everything - engine_info(config(speculative=object())).features == {EngineFeature.LOGIT_BIAS}
