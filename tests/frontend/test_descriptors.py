"""Descriptors enough."""

import resource

import pytest

from dynamo.frontend.descriptors import reserve_descriptors

INFINITY = resource.RLIM_INFINITY


class Limits:
    """Those of a process that the test made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.now = (soft, hard)
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.now)
        monkeypatch.setattr(resource, "setrlimit", self._set)

    def _set(self, _: int, limits: tuple[int, int]) -> None:
        self.now = limits


@pytest.mark.parametrize(
    ("soft", "hard", "after", "warned"),
    [
        (1024, 1_000_000, 1512, False),
        (1024, INFINITY, 1512, False),
        (2000, 4000, 2000, False),
        (INFINITY, INFINITY, INFINITY, False),
        (1024, 1200, 1200, True),
        (100, 100, 100, True),
    ],
)
def test_limit_for_a_thousand_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, soft: int, hard: int, after: int, warned: bool
) -> None:
    limits = Limits(monkeypatch, soft, hard)
    reserve_descriptors(1000)
    assert limits.now == (after, hard)
    assert bool(caplog.records) == warned
