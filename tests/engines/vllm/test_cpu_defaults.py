from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from dynamo.engines.vllm import cpu_defaults
from dynamo.protocols.model_card import WorkerType


@dataclass
class Args:
    """The part of vllm.engine.arg_utils.AsyncEngineArgs that is read and written."""

    block_size: int | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    gpu_memory_utilization: float = 0.92
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enforce_eager: bool = True
    context_of_the_model: int = 8192

    def create_model_config(self) -> SimpleNamespace:
        return SimpleNamespace(max_model_len=self.context_of_the_model)


def chosen(environ: dict[str, str] | None = None, **given: Any) -> Args:
    args = Args(**given)
    cpu_defaults.choose(args, {"VLLM_CPU_OMP_THREADS_BIND": "auto"} if environ is None else environ)
    return args


def test_defaults() -> None:
    args = chosen()

    assert (args.block_size, args.kv_cache_memory_bytes, args.max_model_len) == (32, 1 << 30, 2048)


def test_what_the_user_gave_stays() -> None:
    args = chosen(block_size=64, kv_cache_memory_bytes=1, max_model_len=4096)

    assert (args.block_size, args.kv_cache_memory_bytes, args.max_model_len) == (64, 1, 4096)


def test_a_shorter_context_of_the_model_stays() -> None:
    assert chosen(context_of_the_model=512).max_model_len is None


@pytest.mark.parametrize("given", [{"num_gpu_blocks_override": 100}, {"gpu_memory_utilization": 0.5}])
def test_the_cache_may_be_sized_in_other_ways(given: dict[str, Any]) -> None:
    assert chosen(**given).kv_cache_memory_bytes is None


def test_the_cache_may_be_sized_by_the_environment() -> None:
    assert chosen({"VLLM_CPU_KVCACHE_SPACE": "4"}).kv_cache_memory_bytes is None


def test_data_parallel_ranks_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    environ: dict[str, str] = {}

    chosen(environ, data_parallel_size=2)

    assert environ == {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}


@pytest.mark.parametrize(
    ("role", "cpus", "expected"),
    [
        (WorkerType.Prefill, {0, 1}, "0"),
        (WorkerType.Decode, {0, 1}, "1"),
        (WorkerType.Prefill, {2, 3, 5}, "2"),
        (WorkerType.Decode, {2, 3, 5}, "3,5"),
        (WorkerType.Decode, {7}, "7"),
        (WorkerType.Aggregated, {0, 1}, "0,1"),
        (WorkerType.Prefill, set(range(8)), None),
    ],
)
def test_prefill_and_decode_share_a_small_machine(
    role: WorkerType, cpus: set[int], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: cpus)
    environ: dict[str, str] = {}

    cpu_defaults.choose(Args(), environ, role)

    assert environ.get("VLLM_CPU_OMP_THREADS_BIND") == expected


def test_ranks_of_one_model_are_left_to_vllm() -> None:
    environ: dict[str, str] = {}

    chosen(environ, tensor_parallel_size=2)

    assert environ == {}


def test_the_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="dynamo"):
        chosen()

    assert caplog.messages == [
        "no accelerator, vLLM runs on the CPU: "
        "block size 32, KV cache of 1.0 GiB, context of 2048 tokens, eager, threads on CPUs auto"
    ]
