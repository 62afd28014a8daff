import pytest

from benchmarks.goodput import RATE_STEP, SHARE_MIN, Outcome, Targets, search

TARGETS = Targets(ttft_s=1.0, tpot_s=0.02)


def outcome(rate_per_s: float, good: int, bad: int) -> Outcome:
    return Outcome(
        rate_per_s=rate_per_s,
        ttft_s=[1.0] * good + [1.1] * bad,
        tpot_s=[0.02] * (good + bad),
        gap_p99_s=0.0,
        hit_ratio=0.0,
        local_share=0.0,
    )


@pytest.mark.parametrize("limit_per_s", [1.0, 1.5, 10.0, 99.0, 100.0, 104.0, 2000.0])
def test_finds_the_highest_rate(limit_per_s: float) -> None:
    asked: list[float] = []

    def run(rate_per_s: float) -> Outcome:
        asked.append(rate_per_s)
        return outcome(rate_per_s, 95, 5) if rate_per_s <= limit_per_s else outcome(rate_per_s, 0, 100)

    found = search(run, TARGETS, start_per_s=100)
    assert found is not None
    assert found.rate_per_s <= limit_per_s < found.rate_per_s * RATE_STEP
    assert found.goodput_per_s(TARGETS) == pytest.approx(0.95 * found.rate_per_s)
    assert len(asked) == len(set(asked)) < 30


def test_gives_up_where_one_request_is_too_many() -> None:
    assert search(lambda rate_per_s: outcome(rate_per_s, 0, 1), TARGETS, start_per_s=20) is None


def test_nine_in_ten_are_enough() -> None:
    assert outcome(1.0, 9, 1).share(TARGETS) == SHARE_MIN


def test_both_targets_count() -> None:
    times = Outcome(
        rate_per_s=8.0,
        ttft_s=[0.5, 0.5, 2.0, 2.0],
        tpot_s=[0.01, 0.03, 0.01, 0.03],
        gap_p99_s=0.0,
        hit_ratio=0.0,
        local_share=0.0,
    )
    assert times.share(TARGETS) == 0.25
    assert times.goodput_per_s(TARGETS) == 2.0
