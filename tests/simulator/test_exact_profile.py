"""The profile of a simulated engine is what the engine does."""

import pytest

from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.simulator.exact_profile import exact_profile

ENGINE = SchedulerConfig(block_size=64, num_blocks=1000, max_num_batched_tokens=2048, max_model_len=20_000)
TIMING = TimingModel(speedup_ratio=0.5, prefill_ms=(0, 0.01, 10), decode_ms=(0, 50, 5))


def test_prefill() -> None:
    points = {point.prompt_tokens: point for point in exact_profile(ENGINE, TIMING).prefill}
    assert list(points) == [128, 512, 1024, 2048, 4096, 8192, 16384]
    assert points[128].ttft_s == pytest.approx(2 * (0.010 + 0.00128))
    assert points[4096].ttft_s == pytest.approx(2 * 2 * (0.010 + 0.02048)), "in two steps"
    assert points[128].tokens_per_s == pytest.approx(2048 / (2 * (0.010 + 0.02048))), "of full steps"


def test_decode() -> None:
    profile = exact_profile(ENGINE, TIMING)
    points = {(point.context_tokens, point.concurrency): point for point in profile.decode}
    point = points[1024, 32]
    assert point.itl_s == pytest.approx(2 * (0.005 + 0.050 * 32 * 16 / 1000))
    assert point.tokens_per_s == pytest.approx(32 / point.itl_s)
    assert max(concurrency for context, concurrency in points if context == 8192) == 4, "more do not fit: 128 blocks"
    assert profile.max_kv_tokens == 64_000


def test_an_engine_for_nothing() -> None:
    with pytest.raises(ValueError, match="too short"):
        exact_profile(SchedulerConfig(max_model_len=100), TIMING)
