"""The benchmark of the memory tiers: its tables, and what needs no vLLM."""

import pytest

from benchmarks.kvbm_cost import Cost, Pair
from benchmarks.kvbm_cost import report as cost_report
from benchmarks.kvbm_engine import Answer
from benchmarks.kvbm_hooks import HookFigures
from benchmarks.kvbm_prompts import turns, unique_prompts
from benchmarks.kvbm_ttft import Samples, table, verdicts
from benchmarks.kvbm_turns import Run
from benchmarks.kvbm_turns import table as turns_table


def answer(ttft_s: float) -> Answer:
    return Answer(ttft_s=ttft_s, elapsed_s=1.0, token_ids=(1,), cached_tokens=0)


def test_ttft() -> None:
    samples = Samples()
    for place, ttft_s in {"cold": 4.0, "device": 0.1, "host": 0.125, "disk": 0.5}.items():
        samples.add(place, answer(ttft_s))
    samples.memcpy_s.append(0.01)
    samples.prompt_bytes.append(30_000_000)
    samples.like_cold.append(True)
    assert "| host | 125.0 | 125.0 | 125.0 | 32.0 |" in table(samples)
    _, bound, host, disk = verdicts(samples)
    assert bound.endswith("+ 10 ms = 130.0 ms")
    assert host.startswith("host: 32.0 x")
    assert disk.startswith("disk: 8.0 x")


def test_turns() -> None:
    none = Run(ttft_s=(2.0, 4.0), elapsed_s=2.0, tokens=100, cached_share=0.0)
    host = Run(ttft_s=(1.0, 1.0), elapsed_s=1.0, tokens=100, cached_share=0.5)
    assert turns_table({"none": [none], "host": [host]}).splitlines()[-1] == "| host | 1000 | 100 | 50 % | 3.0 |"


def test_cost() -> None:
    cost = Cost((Pair(100.0, 90.0), Pair(100.0, 99.0)), {"scheduler": HookFigures("scheduler", 0.1, 0.2, 9)}, 10.0)
    text = cost_report(cost)
    assert "| 2 | 100 | 99 | 0.990 |" in text
    assert "hooks in the scheduler's thread: 1.00 % of the time as CPU, 2.00 % as time" in text


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")  # importing torch warns a lot
def test_copies() -> None:
    from benchmarks.kvbm_copy import measure, report

    speeds = measure(rounds=2)
    assert all(speed > 0.01 for speed in speeds.gather + speeds.scatter + speeds.memcpy)
    assert report(speeds).count("\n") == 4


def test_prompts_are_unlike() -> None:
    prompts = unique_prompts(50, seed=1)
    first, second = next(prompts), next(prompts)
    assert len(first) == 50
    assert first[:32] != second[:32]
    assert next(unique_prompts(50, seed=1)) == first
    conversations = turns(2, 3, 10, seed=1)
    assert [len(each) for each in conversations] == [3, 3]
