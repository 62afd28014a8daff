"""The router benchmark runs; how good the figures are is the simulator's own test."""

from pathlib import Path

import pytest

from benchmarks.router import FLEETS, main

SLICE = Path(__file__).parents[1] / "data" / "mooncake_conversation_slice.jsonl"


def test_a_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SLICE), "--limit", "20", "--router-mode", "round-robin,kv", "--jobs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if line.startswith("## ")]
    assert titles[0].startswith("## Capacity")
    assert len([title for title in titles if title.endswith(" workers")]) == len(FLEETS) + 1
    assert any(title.startswith("## Small cache") for title in titles)
    assert sum(line.startswith("| kv ") for line in lines) == sum(line.startswith("| round-robin ") for line in lines)


def test_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/nowhere/trace.jsonl"]) == 1
    assert "/nowhere/trace.jsonl" in capsys.readouterr().err
