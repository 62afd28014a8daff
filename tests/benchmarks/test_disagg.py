"""The benchmark of disaggregation runs; that the simulation is right is the simulator's own test."""

import itertools
from pathlib import Path

import pytest

from benchmarks.disagg import main
from benchmarks.disagg_config import DisaggBenchConfig, WorkloadName, prefill_tokens
from benchmarks.disagg_workloads import make_workload
from benchmarks.goodput import Targets

SLICE = Path(__file__).parents[1] / "data" / "mooncake_conversation_slice.jsonl"


def test_a_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--workload", "trace", "--workers", "3", "--duration", "4", "--warm-up", "0", "--chunks", "8192"]
    assert main([str(SLICE), "--jobs", "1", *arguments]) == 0
    shown = capsys.readouterr()
    assert f"{SLICE.stem}: disaggregated 1:2 is done\n" in shown.err  # minutes may pass between two of them
    lines = shown.out.splitlines()
    assert lines[0].startswith(f"## {SLICE.stem}: TTFT of at most 2 s, ITL of at most 25 ms, 3 workers")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")][1:]
    assert [row[:2] for row in rows] == [
        ["aggregated", "-"],
        ["disaggregated", "1:2"],
        ["disaggregated", "2:1"],
        ["conditional", "1:2"],
        ["conditional", "2:1"],
    ]
    assert float(rows[0][3]) > 0


def test_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--workload", "trace"]) == 1
    assert "Mooncake" in capsys.readouterr().err
    assert main(["--chunks", "many"]) == 1
    assert "--chunks" in capsys.readouterr().err
    assert main(["/nowhere/trace.jsonl"]) == 1  # before the other workloads are measured
    shown = capsys.readouterr()
    assert "/nowhere/trace.jsonl cannot be read" in shown.err
    assert shown.out == ""


def test_lengths_are_as_announced_and_always_the_same() -> None:
    requests = make_workload(WorkloadName.LONG_IN, None, seed=0).requests(2000)
    assert sum(request.prompt_tokens for request in requests) / 2000 == pytest.approx(8000, rel=0.05)
    assert sum(request.output_tokens for request in requests) / 2000 == pytest.approx(64, rel=0.05)
    blocks = list(itertools.chain.from_iterable(request.block_ids for request in requests))
    assert len(blocks) == len(set(blocks)), "no prompt has anything in common with another"
    assert make_workload(WorkloadName.LONG_IN, None, seed=0).requests(10) == requests[:10]


def test_what_waits_longer_than_the_ttft_target_stays() -> None:
    targets = Targets(ttft_s=0.5, tpot_s=0.01)
    config = DisaggBenchConfig()
    assert (
        config.conditional(targets).max_prefill_queue_tokens == prefill_tokens(0.5) == pytest.approx(24_000, rel=0.02)
    )
    given = DisaggBenchConfig(max_prefill_queue_tokens=7)
    assert given.conditional(targets).max_prefill_queue_tokens == 7
