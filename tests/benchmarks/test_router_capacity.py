import pytest

from benchmarks.router_capacity import highest_rate


@pytest.mark.parametrize("limit", [0, 1, 15, 16, 17, 100, 1000])
def test_finds_the_highest_rate(limit: int) -> None:
    asked: list[int] = []

    def bears(rate: int) -> bool:
        asked.append(rate)
        return rate <= limit

    assert highest_rate(bears, start=16, stop=10_000) == limit
    assert len(asked) == len(set(asked)) < 20


def test_gives_up_where_nothing_is_too_much() -> None:
    assert highest_rate(lambda _: True, start=16, stop=1000) == 1024
