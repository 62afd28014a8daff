from types import SimpleNamespace
from typing import Any

import pytest

from dynamo.protocols.load import WorkerLoad

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # importing vLLM and torch warns a lot

CONFIG: Any = SimpleNamespace(
    cache_config=SimpleNamespace(num_gpu_blocks=100, block_size=16),
    parallel_config=SimpleNamespace(data_parallel_size=1),
)


class Recorded:
    """A recorder with a clock that the test moves."""

    def __init__(self) -> None:
        from dynamo.engines.vllm.stats import LoadRecorder

        self.now_s = 100.0
        self.recorder = LoadRecorder(CONFIG, 0, clock=lambda: self.now_s)

    def step(
        self,
        at_s: float,
        *,
        running: int,
        ttft_s: tuple[float, ...] = (),
        computed: int = 0,
        received: int = 0,
        decoding: int = 0,
        outputs: bool = True,
    ) -> WorkerLoad:
        """vLLM tells of a step that has ended `at_s`."""
        self.now_s = 100.0 + at_s
        scheduler: Any = SimpleNamespace(
            num_running_reqs=running, num_waiting_reqs=0, num_skipped_waiting_reqs=0, kv_cache_usage=0.1
        )
        iteration: Any = SimpleNamespace(
            num_generation_tokens=len(ttft_s) + decoding,
            time_to_first_tokens_iter=list(ttft_s),
            inter_token_latencies_iter=[0.01] * decoding,
            prompt_token_stats=SimpleNamespace(computed=computed, external_kv_transfer=received),
        )
        self.recorder.record(scheduler, iteration if outputs else None)
        return self.recorder.load()


def test_a_prompt_that_ends_a_silence_has_taken_its_time_to_the_first_token() -> None:
    load = Recorded().step(5.0, running=1, ttft_s=(0.5,), computed=1000)
    assert load.busy_s == pytest.approx(0.5)
    assert (load.prefill_steps, load.prefilled_tokens) == (1, 1000)
    assert (load.decode_steps, load.decoded_tokens, load.kv_token_steps) == (0, 0, 0)


def test_further_steps_take_the_time_since_the_last_one() -> None:
    recorded = Recorded()
    recorded.step(5.0, running=1, ttft_s=(0.5,), computed=1000)
    load = recorded.step(5.1, running=2, ttft_s=(3.0,), computed=200, decoding=1)
    assert load.busy_s == pytest.approx(0.6)
    assert (load.prefill_steps, load.prefilled_tokens) == (2, 1200)
    assert (load.decode_steps, load.decoded_tokens, load.kv_token_steps) == (1, 1, 10 * 16)


def test_silence_is_not_counted() -> None:
    recorded = Recorded()
    recorded.step(5.0, running=1, ttft_s=(0.5,), computed=1000)
    recorded.step(5.1, running=0, decoding=1)
    load = recorded.step(60.0, running=1, ttft_s=(0.4,), computed=10)
    assert load.busy_s == pytest.approx(1.0)


def test_a_step_without_outputs_counts_with_the_next_one() -> None:
    recorded = Recorded()
    recorded.step(5.0, running=1, outputs=False)
    load = recorded.step(5.2, running=1, ttft_s=(0.7,), computed=4000)
    assert load.busy_s == pytest.approx(0.7)
    assert (load.prefill_steps, load.steps) == (1, 2)


def test_a_transfer_that_ends_a_silence_is_no_work() -> None:
    load = Recorded().step(5.0, running=1, ttft_s=(0.5,), computed=1, received=999)
    assert (load.busy_s, load.prefill_steps) == (0.0, 0)
