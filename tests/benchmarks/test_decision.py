"""The benchmark runs and what it gives is plausible; how large the figures are is not tested."""

from benchmarks.decision import Point, measure, render


def test_a_small_run_gives_a_plausible_row() -> None:
    point = Point(workers=3, prompt_tokens=100, block_size=16)
    sample = measure(point, 20)
    assert 0 < sample.hash_and_match_us < sample.decision_us < 1e5
    assert 0 < sample.rest_of_life_us < 1e5
    assert "| 3 | 100 | 16 |" in render([(point, sample)])
