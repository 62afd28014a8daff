"""The benchmark runs and what it gives is plausible; how large the figures are is not tested."""

from pathlib import Path

from benchmarks.points import HttpPoint, Pace, RpcPoint
from benchmarks.prompt import build_prompt
from benchmarks.report import problems, render
from benchmarks.stack import OUTPUT_TOKENS
from benchmarks.suite import Effort, run

BRIEF = Effort(repetitions=1, warm_up_s=0.1, seconds=0.5, paced_seconds=0.5)
HTTP = HttpPoint(pace=Pace.BURST, concurrency=2)
RPC = RpcPoint(items=10, concurrency=2)


def test_a_small_run_gives_plausible_rows(model_dir: Path) -> None:
    prompt = build_prompt(model_dir, 100)

    results = run([HTTP, RPC], BRIEF, model_dir, prompt)

    assert problems(results) == []
    (http,) = results.http[HTTP]
    assert http.tokens == http.requests * OUTPUT_TOKENS > 0
    assert 0 < http.events <= http.tokens
    assert 0 < http.ttft_p50_ms <= http.ttft_p99_ms < 1000 * http.elapsed_s
    assert http.elapsed_s > 0.4
    assert 0 < http.frontend_cpu_s < http.elapsed_s * 2
    assert http.worker_cpu_s > 0
    assert 10 < http.frontend_pss_mib < 1000
    (rpc,) = results.rpc[RPC]
    assert rpc.calls > 0
    assert 0 < rpc.server_cpu_s < rpc.elapsed_s * 2
    assert "| burst c=2 |" in render(results, prompt, 1)
