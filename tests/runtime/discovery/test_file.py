"""What only the file backend has to get right: processes that die, and a directory that others can reach too."""

# ruff: noqa: ASYNC222, ASYNC240 - a few small files

import errno
import fcntl
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dynamo.errors import ConfigError
from dynamo.runtime.discovery.base import Delete, Put
from dynamo.runtime.discovery.entry_file import OwnedEntry, create_entry, entry_names, open_entry
from dynamo.runtime.discovery.file import FileDiscovery
from dynamo.testing import eventually, program, within
from dynamo.testing.descriptors import open_descriptors
from dynamo.testing.discovery import follow

OWNER = """
import asyncio, os, signal, sys
from pathlib import Path
from dynamo.runtime.discovery.file import FileDiscovery

async def main():
    discovery = FileDiscovery(Path(sys.argv[1]))
    await discovery.register("k", b"v")
    if "--fork" in sys.argv and (child := os.fork()) == 0:
        signal.pause()
    print("registered", child if "--fork" in sys.argv else "", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

Make = Callable[[], FileDiscovery]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "parent" / "discovery"


@pytest.fixture
async def make(directory: Path) -> AsyncIterator[Make]:
    """Makes participants that look at the directory every few milliseconds."""
    made: list[FileDiscovery] = []

    def new() -> FileDiscovery:
        made.append(FileDiscovery(directory, poll_interval_s=0.002))
        return made[-1]

    yield new
    for discovery in made:
        await discovery.close()


@pytest.mark.alone
async def test_kill_is_seen_within_a_second(directory: Path) -> None:
    watcher = FileDiscovery(directory)  # with the interval that users have
    watch = watcher.watch("")
    async with program(["-c", OWNER, str(directory)]) as owner:
        await follow(watch, {"k": b"v"})
        owner.signal(signal.SIGKILL)
        killed_s = time.monotonic()
        event = await within(anext(watch))
        assert time.monotonic() - killed_s < 1
        assert not isinstance(event, Put)
        assert entry_names(directory) == set()
    await watcher.close()


async def test_forked_child_does_not_keep_a_dead_parent_alive(directory: Path, make: Make) -> None:
    watch = make().watch("")
    async with program(["-c", OWNER, str(directory), "--fork"]) as owner:
        child = int((await owner.line("registered")).split()[1])
        try:
            await follow(watch, {"k": b"v"})
            owner.signal(signal.SIGKILL)
            assert not isinstance(await within(anext(watch)), Put)
            os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)


async def test_fork_leaves_the_parents_entry_alone(directory: Path, make: Make) -> None:
    owner, watch = make(), make().watch("")
    await owner.register("k", b"v")
    if (child := os.fork()) == 0:
        os._exit(0)  # the hook has run by now
    os.waitpid(child, 0)
    await follow(watch, {"k": b"v"})


async def test_watch_starts_before_the_directory_exists(directory: Path, make: Make) -> None:
    watch = make().watch("")
    assert not directory.exists()
    await make().register("k", b"v")
    await follow(watch, {"k": b"v"})


async def test_entries_return_after_the_directory_was_removed(directory: Path, make: Make) -> None:
    owner, watch = make(), make().watch("")
    registration = await owner.register("k", b"v")
    await follow(watch, {"k": b"v"})
    shutil.rmtree(directory.parent)
    await eventually(lambda: len(entry_names(directory)) == 1)
    await follow(make().watch(""), {"k": b"v"})
    await registration.withdraw()
    assert entry_names(directory) == set()


async def test_owner_that_watches_nothing_looks_after_its_entries_too(directory: Path, make: Make) -> None:
    await make().register("k", b"v")
    shutil.rmtree(directory)
    await eventually(lambda: len(entry_names(directory)) == 1)


async def test_removed_entry_returns_and_nobody_takes_its_owner_for_dead(directory: Path, make: Make) -> None:
    watch = make().watch("")  # looks many times before the owner does
    owner = FileDiscovery(directory)
    await owner.register("k", b"v")
    assert await within(anext(watch)) == Put("k", b"v")
    shutil.rmtree(directory)
    assert await within(anext(watch)) == Put("k", b"v")
    assert len(entry_names(directory)) == 1
    await owner.close()
    assert await within(anext(watch)) == Delete("k")


async def test_owner_that_dies_before_it_can_put_its_entry_back(directory: Path, make: Make) -> None:
    watch = make().watch("")
    async with program(["-c", OWNER, str(directory)]) as owner:
        await follow(watch, {"k": b"v"})
        owner.signal(signal.SIGSTOP)
        shutil.rmtree(directory)
        owner.signal(signal.SIGKILL)
        assert await within(anext(watch)) == Delete("k")


async def test_key_taken_over_while_the_file_was_away(
    directory: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    thief = FileDiscovery(directory)
    owner = make()
    registration = await owner.register("k", b"mine")
    (directory / entry_names(directory).pop()).unlink()
    await thief.register("k", b"stolen")  # before the owner's poller runs
    await eventually(lambda: "was removed" in caplog.text)
    await registration.withdraw()
    await owner.close()
    await follow(make().watch(""), {"k": b"stolen"})
    await thief.close()


async def test_key_of_a_dead_owner_is_free(directory: Path, make: Make) -> None:
    directory.mkdir(parents=True)
    create_entry(directory, "k", b"old").release()  # what the kernel does at a crash
    await make().register("k", b"new")
    await follow(make().watch(""), {"k": b"new"})


async def test_successor_under_the_same_key_replaces_the_dead(directory: Path, make: Make) -> None:
    directory.mkdir(parents=True)
    dead = create_entry(directory, "k", b"old")
    watch = make().watch("")
    await follow(watch, {"k": b"old"})
    dead.release()
    new = create_entry(directory, "k", b"new")
    while await within(anext(watch)) != Put("k", b"new"):
        pass
    new.remove()


async def test_births_are_told_before_deaths(directory: Path, make: Make) -> None:
    """Where somebody is replaced between two looks, at no moment is nobody there."""
    directory.mkdir(parents=True)
    old = create_entry(directory, "old", b"1")
    watch = make().watch("")
    await follow(watch, {"old": b"1"})
    new = create_entry(directory, "new", b"2")
    old.remove()
    assert [await within(anext(watch)) for _ in range(2)] == [Put("new", b"2"), Delete("old")]
    new.remove()


@pytest.mark.parametrize("place", ["file/discovery", "file", "/proc/dynamo"])
async def test_unusable_directory(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    discovery = FileDiscovery(tmp_path / place)
    with pytest.raises(ConfigError, match="discovery directory"):
        await discovery.register("k", b"v")
    await discovery.close()


async def test_directory_that_is_a_file_cannot_be_watched(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        FileDiscovery(tmp_path / "file").watch("")


async def test_directory_of_another_user_is_refused(
    directory: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir(parents=True)
    if os.getuid() == 0:
        os.chown(directory, 4242, -1)
    monkeypatch.setattr("os.getuid", lambda: 4243)
    with pytest.raises(ConfigError, match="another user"):
        await make().register("k", b"v")
    with pytest.raises(ConfigError, match="another user"):
        make().watch("")


async def test_lost_directory_is_reported_once_and_found_again(
    directory: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    watch = make().watch("")
    directory.parent.mkdir()
    directory.touch()  # somebody puts a file in its place
    await eventually(lambda: "discovery directory" in caplog.text)
    directory.unlink()
    await make().register("k", b"v")
    await follow(watch, {"k": b"v"})
    assert caplog.text.count("discovery directory") == 1


async def test_foreign_files_are_left_alone(directory: Path, make: Make) -> None:
    directory.mkdir(parents=True)
    (directory / "notes.txt").write_text("mine")
    (directory / "@notes.txt").write_text("mine")
    (directory / ".profile").write_text("mine")
    (directory / "@directory").mkdir()
    (directory / "@link").symlink_to("notes.txt")
    os.mkfifo(directory / "@fifo")
    for name in os.listdir(directory):
        os.utime(directory / name, (0, 0), follow_symlinks=False)
    before = set(os.listdir(directory))
    watch = make().watch("")
    await make().register("k", b"v")
    await follow(watch, {"k": b"v"})
    assert set(os.listdir(directory)) >= before


async def test_half_written_files_disappear_in_time(directory: Path, make: Make) -> None:
    directory.mkdir(parents=True)
    old, young = directory / ".@old", directory / ".@young"
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    make().watch("")
    assert young.exists()
    assert not old.exists()


async def test_unreadable_entry_is_reported_once_and_hides_no_other(
    directory: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    directory.mkdir(parents=True)
    (directory / "@loop").symlink_to("@loop")  # root may read everything, but not this
    watch = make().watch("")
    await make().register("k", b"v")
    await follow(watch, {"k": b"v"})
    assert caplog.text.count("@loop") == 1


async def test_close_survives_a_file_that_cannot_be_removed(
    directory: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = make()
    for key in ("a", "b"):
        await owner.register(key, b"v")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "read-only")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        await owner.close()
    make().watch("")  # sees that nobody holds the locks
    assert entry_names(directory) == set()


async def test_dead_entry_that_cannot_be_removed(directory: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir(parents=True)
    dead = create_entry(directory, "dead", b"v")
    watch, view = make().watch(""), dict[str, bytes]()
    await follow(watch, {"dead": b"v"}, view=view)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "read-only")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        dead.release()
        await follow(watch, {}, view=view)
    await make().register("k", b"v")
    await follow(watch, {"k": b"v"}, view=view)


async def test_trouble_with_an_entry_does_not_end_discovery(
    directory: Path, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch, view = make().watch(""), dict[str, bytes]()
    await make().register("a", b"v")
    await follow(watch, {"a": b"v"}, view=view)

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        await eventually(lambda: "no locks available" in caplog.text)
    await make().register("b", b"v")
    await follow(watch, {"a": b"v", "b": b"v"}, view=view)


async def test_descriptors_are_given_back(directory: Path, make: Make) -> None:
    before = open_descriptors()
    for _ in range(20):
        owner, other = make(), make()
        watch = other.watch("")
        registration = await owner.register("k", b"v")
        await follow(watch, {"k": b"v"})
        await registration.withdraw()
        await owner.close()
        await other.close()
    assert open_descriptors() == before


def test_cleaners_never_remove_a_living_successor(tmp_path: Path) -> None:
    """Four watchers race to remove each dead entry while its successor takes the name."""
    path = tmp_path / "@k"
    stop = False

    def clean() -> None:
        while not stop:
            if (seen := open_entry(path)) is not None:
                while not stop and not seen.is_dead():
                    os.sched_yield()
                seen.close()

    with ThreadPoolExecutor(4) as pool:
        cleaners = [pool.submit(clean) for _ in range(4)]
        try:
            owner = create_entry(tmp_path, "k", b"")
            for _ in range(300):
                owner.release()  # dies
                owner = _takes_over(tmp_path)
                assert owner.in_place
        finally:
            stop = True
        for cleaner in cleaners:
            cleaner.result()
    assert owner.in_place
    owner.remove()


def _takes_over(directory: Path) -> OwnedEntry:
    while True:
        try:
            return create_entry(directory, "k", b"")
        except FileExistsError:  # a cleaner is at it this very moment
            os.sched_yield()
