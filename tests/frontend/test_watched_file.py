"""Files that change, on a clock of the test's own."""

from pathlib import Path

import pytest

from dynamo.frontend import watched_file
from dynamo.frontend.watched_file import WatchedFile


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watched_file, "time", clock)
    return clock


def test_each_change_is_told_once(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "file"
    path.write_text("a")
    watched = WatchedFile(path)
    seen = []
    for change in (
        lambda: None,
        lambda: path.write_text("ab"),
        lambda: forbid(path),
        lambda: None,
        lambda: (tmp_path / "new").write_text("xy"),
        lambda: (tmp_path / "new").replace(path),
        path.unlink,
        lambda: None,
        lambda: path.write_text("ab"),
    ):
        change()
        clock.now_s += 1
        seen.append(watched.changed())
    assert seen == [False, True, True, False, False, True, True, False, True]


def test_link_that_points_elsewhere(tmp_path: Path, clock: Clock) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("same size")
    link = tmp_path / "link"
    link.symlink_to("a")
    watched = WatchedFile(link)
    link.unlink()
    link.symlink_to("b")
    clock.now_s += 1
    assert watched.changed()


def test_it_is_looked_at_once_a_second(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "file"
    watched = WatchedFile(path)
    path.write_text("a")
    clock.now_s = 0.9
    assert not watched.changed()
    clock.now_s = 1.0
    assert watched.changed()


def forbid(path: Path) -> None:
    """A kernel's clock of changes may stand still for some milliseconds."""
    before_ns = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before_ns:
        path.chmod(0o400)
