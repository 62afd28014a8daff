"""The disk tier: what comes back from it, and what does not."""

import asyncio
import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamo.errors import (
    ConfigError,
    ConnectionLostError,
    InvalidRequestError,
    OverloadedError,
    UnsupportedFeatureError,
)
from dynamo.kvbm import slot as slot_module
from dynamo.kvbm.storage import seals, slab
from dynamo.kvbm.storage.base import Copy, Outcome
from dynamo.kvbm.storage.disk import DiskStorage
from dynamo.testing import within
from dynamo.testing.program import program
from dynamo.transfer import file
from tests.kvbm.storage.small_pool import NAMESPACE, SLOT_BYTES, SLOTS, SmallPool, copies, small_pool, stored

PLACES = 40
READ, CORRUPT = Outcome.READ, Outcome.CORRUPT


@pytest.fixture
async def pool() -> AsyncIterator[SmallPool]:
    async with small_pool() as made:
        yield made


def disk_of(pool: SmallPool, directory: Path, places: int = PLACES) -> DiskStorage:
    return DiskStorage(pool.agent, pool.arena, pool.layout, directory, places)


@pytest.fixture
async def disk(pool: SmallPool, tmp_path: Path) -> AsyncIterator[DiskStorage]:
    made = disk_of(pool, tmp_path)
    assert await within(made.open()) == []
    yield made
    await within(made.close())


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 blocks."""
    monkeypatch.setattr(slab, "SLAB_BYTES", 16 * SLOT_BYTES)


def slab_path(directory: Path, number: int = 0) -> Path:
    return directory / NAMESPACE.hex() / f"{number:06}.slab"


async def written(pool: SmallPool, disk: DiskStorage, count: int = PLACES) -> None:
    some = copies(range(count))
    pool.fill(some)
    await within(disk.write(some))
    pool.wipe()


async def read_back(pool: SmallPool, disk: DiskStorage, count: int = PLACES) -> list[Outcome]:
    some = copies(range(count))
    outcomes = await within(disk.read(some))
    pool.right(some, outcomes)
    return outcomes


@pytest.mark.usefixtures("small_slabs")
async def test_blocks_come_back(pool: SmallPool, tmp_path: Path) -> None:
    disk = disk_of(pool, tmp_path)
    await within(disk.open())
    await written(pool, disk)
    some = copies(reversed(range(PLACES)))
    assert await within(disk.read(some)) == [READ] * PLACES
    assert pool.right(some, [READ] * PLACES) == PLACES
    assert [slab_path(tmp_path, i).exists() for i in range(4)] == [True] * 3 + [False]
    await within(disk.close())


@pytest.mark.usefixtures("small_slabs")
async def test_what_it_holds_is_found_again(pool: SmallPool, disk: DiskStorage, tmp_path: Path) -> None:
    await written(pool, disk)
    await within(disk.forget([stored(3, 3), stored(99, 4), stored(20, 20)]))
    await within(disk.close())
    again = disk_of(pool, tmp_path)
    left = [i for i in range(PLACES) if i not in (3, 20)]
    assert await within(again.open()) == [stored(i, i) for i in left]
    assert set(await read_back(pool, again)) == {READ}  # also what was forgotten: its place has no other block yet
    await within(again.close())


async def test_another_block_takes_a_place(pool: SmallPool, disk: DiskStorage, tmp_path: Path) -> None:
    await written(pool, disk)
    over = copies(range(100, 110), range(10))
    pool.fill(over)
    await within(disk.write(over))
    assert (await read_back(pool, disk))[:12] == [CORRUPT] * 10 + [READ] * 2
    assert await within(disk.read(over)) == [READ] * 10
    await within(disk.forget([stored(0, 0)]))  # late: its place is another block's
    assert await within(disk.open()) == [stored(100 + i, i) for i in range(10)] + [
        stored(i, i) for i in range(10, PLACES)
    ]


async def test_the_page_cache_is_left_alone(
    pool: SmallPool, disk: DiskStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptors: set[int] = set()
    for name in ("_preadv", "_pwritev"):
        call = getattr(file, name)

        def seen(*arguments: int, call: object = call) -> int:
            descriptors.add(arguments[0])
            moved: int = call(*arguments)  # type: ignore[operator]
            return moved

        monkeypatch.setattr(file, name, seen)
    await written(pool, disk)
    assert set(await read_back(pool, disk)) == {READ}
    try:
        os.close(os.open(tmp_path / "probe", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except OSError:
        pytest.skip(f"NOT TESTED: {tmp_path} has no O_DIRECT")
    assert descriptors
    assert all(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT for descriptor in descriptors)


@pytest.mark.usefixtures("small_slabs")
@pytest.mark.parametrize("how", ["bit", "truncated", "swapped", "zeroed", "garbage", "absent", "slots exchanged"])
async def test_files_that_were_tampered_with(pool: SmallPool, disk: DiskStorage, tmp_path: Path, how: str) -> None:
    await written(pool, disk)
    await within(disk.close())
    path, other = slab_path(tmp_path), slab_path(tmp_path, 1)
    shape = slab.SlabShape.of(pool.layout)
    content = bytearray(path.read_bytes())
    expected = [CORRUPT] * 16 + [READ] * (PLACES - 16)
    if how == "bit":
        content[shape.offset(5) + 5000] ^= 1
        path.write_bytes(content)
        expected = [READ] * 5 + [CORRUPT] + [READ] * (PLACES - 6)
    elif how == "truncated":
        os.truncate(path, shape.offset(5) + 100)
        expected = [READ] * 5 + [CORRUPT] * 11 + [READ] * (PLACES - 16)
    elif how == "swapped":
        path.rename(tmp_path / "aside")
        other.rename(path)
        (tmp_path / "aside").rename(other)
        expected = [CORRUPT] * 32 + [READ] * (PLACES - 32)
    elif how == "zeroed":
        path.write_bytes(bytes(len(content)))
    elif how == "garbage":
        path.write_bytes(os.urandom(len(content)))
    elif how == "absent":
        path.unlink()
    else:
        one, two = (slice(shape.offset(i), shape.offset(i + 1)) for i in (2, 9))
        content[one], content[two] = content[two], content[one]
        path.write_bytes(content)
        expected = [CORRUPT if i in (2, 9) else READ for i in range(PLACES)]
    again = disk_of(pool, tmp_path)
    listed = {block.place for block in await within(again.open())}
    assert await read_back(pool, again) == expected
    unlisted = {i for i in range(PLACES) if i not in listed}
    tables_lost = {"swapped": 32, "zeroed": 16, "garbage": 16, "absent": 16}
    assert unlisted == set(range(tables_lost.get(how, 0)))
    await written(pool, again)
    assert set(await read_back(pool, again)) == {READ}
    await within(again.close())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.integers(0, 10**9), min_size=1, max_size=40))
def test_bits_that_flip_anywhere(tmp_path: Path, flips: list[int]) -> None:
    """No block is listed or read that was not written there."""

    async def run() -> None:
        async with small_pool() as pool:
            disk = disk_of(pool, tmp_path, 8)
            await disk.open()
            await written(pool, disk, 8)
            await disk.close()
            path = slab_path(tmp_path)
            content = bytearray(path.read_bytes())
            used = [*range(8 * slab.ENTRY_BYTES), *range(slab.SlabShape.of(pool.layout).table_bytes, len(content))]
            for flip in flips:
                content[used[flip % len(used)]] ^= 1 << flip % 8
            path.write_bytes(content)
            disk = disk_of(pool, tmp_path, 8)
            assert set(await disk.open()) <= {stored(i, i) for i in range(8)}
            await read_back(pool, disk, 8)
            await disk.close()

    asyncio.run(run())


async def test_a_file_that_shrinks_in_use(pool: SmallPool, disk: DiskStorage, tmp_path: Path) -> None:
    await written(pool, disk)
    os.truncate(slab_path(tmp_path), slab.SlabShape.of(pool.layout).offset(5))
    with pytest.raises(InvalidRequestError):
        await read_back(pool, disk)
    assert len(await within(disk.open())) == PLACES
    assert await read_back(pool, disk) == [READ] * 5 + [CORRUPT] * (PLACES - 5)


@pytest.mark.parametrize("instead", ["nothing", "another", "file"])
async def test_a_directory_that_goes_in_use(pool: SmallPool, disk: DiskStorage, tmp_path: Path, instead: str) -> None:
    """What is written into files that have no name any more, nobody finds again."""
    await written(pool, disk)
    directory = slab_path(tmp_path).parent
    shutil.rmtree(directory)
    if instead == "another":
        directory.mkdir()
        slab_path(tmp_path).touch()
    elif instead == "file":
        directory.touch()
    with pytest.raises(ConnectionLostError, match="was removed"):
        await within(disk.write(copies(range(4))))
    if instead == "file":
        directory.unlink()
    assert await within(disk.open()) == []
    await written(pool, disk)
    assert len(await within(disk.open())) == PLACES


async def test_two_models_in_one_directory(pool: SmallPool, disk: DiskStorage, tmp_path: Path) -> None:
    other_namespace = bytes(16)
    async with small_pool("other", other_namespace) as other:
        beside = disk_of(other, tmp_path)
        assert await within(beside.open()) == []
        await written(pool, disk, 10)
        await written(other, beside, 20)
        assert len(await within(disk.open())) == 10
        assert len(await within(beside.open())) == 20
        await within(beside.close())
        path = slab_path(tmp_path)
        (tmp_path / other_namespace.hex() / path.name).write_bytes(path.read_bytes())
        again = disk_of(other, tmp_path)
        assert await within(again.open()) == []
        assert set(await read_back(other, again, 10)) == {CORRUPT}
        await within(again.close())


async def test_a_pool_of_another_form(pool: SmallPool, disk: DiskStorage, tmp_path: Path) -> None:
    """What slabs of an earlier release, or of another size, hold cannot be read: they go."""
    await written(pool, disk)
    await within(disk.close())
    record_path = slab_path(tmp_path).with_name("pool.json")
    record = json.loads(record_path.read_bytes())
    assert record["description"] == "a model, float16"
    for other in (json.dumps(record | {"slab_slots": 7}), "{", None):
        if other is None:
            record_path.unlink()
        else:
            record_path.write_text(other)
        again = disk_of(pool, tmp_path)
        assert await within(again.open()) == []
        assert json.loads(record_path.read_bytes()) == record
        await written(pool, again)
        await within(again.close())


async def test_its_record_is_on_the_disk_before_it_has_its_name(
    pool: SmallPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure must not leave one that cannot be read: the slabs would be removed. Nor is it written in vain."""
    synced: list[str] = []
    record_path = tmp_path / pool.layout.namespace.hex() / "pool.json"

    def sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        content = path.read_text() if path.is_file() else ""
        synced.append(f"{path.name} {content.endswith(chr(10))} {record_path.exists()}")

    monkeypatch.setattr(os, "fsync", sync)
    for _ in range(2):
        disk = disk_of(pool, tmp_path)
        await within(disk.open())
        await within(disk.close())
    assert synced == ["pool.json.new True False", f"{record_path.parent.name} False True"]


@pytest.mark.usefixtures("small_slabs")
async def test_a_smaller_and_a_larger_disk(pool: SmallPool, disk: DiskStorage, tmp_path: Path) -> None:
    await written(pool, disk)
    await within(disk.close())
    smaller = disk_of(pool, tmp_path, 10)
    assert await within(smaller.open()) == [stored(i, i) for i in range(10)]
    assert slab_path(tmp_path).stat().st_size == slab.SlabShape.of(pool.layout).offset(10)
    assert not slab_path(tmp_path, 1).exists()
    await within(smaller.close())
    larger = disk_of(pool, tmp_path, 64)
    assert await within(larger.open()) == [stored(i, i) for i in range(10)]
    await written(pool, larger, 64)
    assert await read_back(pool, larger, 64) == [READ] * 64
    await within(larger.close())


async def test_a_directory_has_one_user(pool: SmallPool, disk: DiskStorage, tmp_path: Path) -> None:
    other = disk_of(pool, tmp_path)
    with pytest.raises(ConfigError, match="another"):
        await within(other.open())
    await within(disk.close())
    assert await within(other.open()) == []
    await within(other.close())
    await within(other.close())


async def test_clear(pool: SmallPool, disk: DiskStorage, tmp_path: Path) -> None:
    await written(pool, disk)
    await within(disk.clear())
    assert slab_path(tmp_path).stat().st_blocks == 0
    assert set(await read_back(pool, disk)) == {CORRUPT}
    assert await within(disk.open()) == []
    await written(pool, disk)
    assert set(await read_back(pool, disk)) == {READ}


async def test_it_is_not_searched(disk: DiskStorage) -> None:
    with pytest.raises(UnsupportedFeatureError):
        await disk.find([bytes(32)])


async def test_after_the_end(pool: SmallPool, disk: DiskStorage) -> None:
    await written(pool, disk)
    await within(disk.close())
    for use in (disk.write(copies([1])), disk.read(copies([1])), disk.forget([stored(1, 1)]), disk.open()):
        with pytest.raises(ConnectionLostError):
            await within(use)


async def test_what_is_cancelled_moves_no_more(
    pool: SmallPool, disk: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is cancelled while threads are at the slots goes when they have ended."""
    entered, opened = threading.Event(), threading.Event()

    def slow_seal(*arguments: object, **named: object) -> None:
        entered.set()
        assert opened.wait(10)

    monkeypatch.setattr(seals, "seal", slow_seal)
    writing = asyncio.create_task(disk.write(copies(range(8))))
    assert await within(asyncio.to_thread(entered.wait, 10))
    writing.cancel()
    await asyncio.wait([writing], timeout=0.05)
    assert not writing.done()
    opened.set()
    with pytest.raises(asyncio.CancelledError):
        await within(writing)
    assert await within(disk.open()) == []


async def test_a_write_that_fails_leaves_no_entry(
    pool: SmallPool, disk: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(pool, disk)

    def fail(*_: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(file, "_pwritev", fail)
    over = copies(range(100, 105), range(5))
    pool.fill(over)
    with pytest.raises(ConnectionLostError):
        await within(disk.write(over))
    monkeypatch.undo()
    assert await within(disk.open()) == [stored(i, i) for i in range(5, PLACES)]
    await within(disk.write(over))
    assert await within(disk.read(over)) == [READ] * 5


def test_a_header_that_is_right_is_left_alone() -> None:
    """Another tier may be copying it just now."""
    image = bytearray(os.urandom(SLOT_BYTES))
    named = {"namespace": NAMESPACE, "key": bytes(32), "payload_bytes": 10_000}
    slot_module.seal(memoryview(image), name=5, **named)  # type: ignore[arg-type]
    slot_module.seal(memoryview(bytes(image)), name=5, **named)  # type: ignore[arg-type] # which is read-only
    with pytest.raises(TypeError):
        slot_module.seal(memoryview(bytes(image)), name=6, **named)  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_slabs")
async def test_every_moment_of_a_write(pool: SmallPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed between two calls of the kernel leaves blocks that are right, and none that is not."""
    disk = disk_of(pool, tmp_path / "written", 16)
    await within(disk.open())
    await written(pool, disk, 16)
    path = slab_path(tmp_path / "written")
    moments: list[bytes] = []

    def kept(call: Callable[..., int]) -> Callable[..., int]:
        def keep(*arguments: Any) -> int:
            moved = call(*arguments)
            moments.append(path.read_bytes())
            return moved

        return keep

    over = [*copies([100, 101, 102], [9, 2, 3]), *copies([9], [5], first_slot=3)]
    pool.fill(over)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", kept(os.pwrite))
        patched.setattr(file, "_pwritev", kept(file._pwritev))
        await within(disk.forget([stored(9, 9)]))
        await within(disk.write(over))
    await within(disk.close())
    assert len(moments) >= 10
    found: list[int] = []
    for moment in moments:
        path.write_bytes(moment)
        again = disk_of(pool, tmp_path / "written", 16)
        blocks = await within(again.open())
        some = [Copy(slot=i, block=block) for i, block in enumerate(blocks)]
        outcomes = await within(again.read(some))
        assert pool.right(some, outcomes) == len(some)
        found.append(len(some))
        await within(again.close())
    assert (min(found), found[0], found[-1]) == (12, 15, 16)


# The filesystem


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MB."""
    path = tmp_path / "tmpfs"
    path.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path]).returncode:
        pytest.skip("NOT TESTED: a full disk (it takes root and mount)")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def remount(path: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", path], check=True)


@pytest.mark.usefixtures("small_slabs")
async def test_a_full_disk(pool: SmallPool, tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 80 blocks would fit, were it not for others' files. What is there serves on, and is not spoiled."""
    monkeypatch.setattr(slab, "STEP_BYTES", 4 * SLOT_BYTES)
    disk = disk_of(pool, tmpfs, SLOTS)
    await within(disk.open())
    (tmpfs / "others").write_bytes(bytes(500_000))
    kept = 0
    while True:
        some = copies(range(kept, kept + 8), first_slot=8)
        pool.fill(some)
        try:
            await within(disk.write(some))
        except OverloadedError:
            break
        kept += 8
    assert 16 <= kept < SLOTS
    over = copies(range(100, 108), range(4, 12))
    pool.fill(over)
    await within(disk.write(over))  # takes no space
    assert await within(disk.read(over)) == [READ] * 8
    assert await read_back(pool, disk, kept) == [READ] * 4 + [CORRUPT] * 8 + [READ] * (kept - 12)
    assert len(await within(disk.open())) == kept
    (tmpfs / "others").unlink()
    await within(disk.write(some))
    assert await within(disk.read(some)) == [READ] * 8
    await within(disk.close())


@pytest.mark.usefixtures("small_slabs")
async def test_a_disk_that_is_read_only_for_a_while(pool: SmallPool, tmpfs: Path) -> None:
    disk = disk_of(pool, tmpfs)
    await within(disk.open())
    await written(pool, disk, 16)
    await within(disk.close())
    remount(tmpfs, "ro")
    disk = disk_of(pool, tmpfs)
    with pytest.raises(InvalidRequestError):
        await within(disk.open())
    remount(tmpfs, "rw")
    assert len(await within(disk.open())) == 16
    assert await read_back(pool, disk, 16) == [READ] * 16
    await within(disk.close())


@pytest.mark.skipif(os.geteuid() == 0, reason="NOT TESTED: a directory without permission (root may do all)")
async def test_a_directory_without_permission(pool: SmallPool, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o500)
    disk = disk_of(pool, tmp_path)
    with pytest.raises(InvalidRequestError):
        await within(disk.open())
    os.chmod(tmp_path, 0o700)
    assert await within(disk.open()) == []
    await within(disk.close())


async def test_a_directory_that_cannot_be(pool: SmallPool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequestError):
        await within(disk_of(pool, tmp_path / "file").open())


# Other processes


@pytest.mark.parametrize("turn", range(4))
async def test_a_writer_that_is_killed(pool: SmallPool, tmp_path: Path, turn: int) -> None:
    """What is listed afterwards is right, or found to be torn."""
    writer = str(Path(__file__).with_name("disk_writer.py"))
    async with program([writer, str(tmp_path)], {"PYTHONPATH": os.pathsep.join(["src", "."])}) as process:
        await process.line(f"batch {20 + 7 * turn}.", 30)  # it is in the midst of the next by then
        process.signal(signal.SIGKILL)
        await process.exit_code()
    disk = disk_of(pool, tmp_path, 32)
    found = await within(disk.open())
    assert len(found) >= 32 - 8  # of one batch
    some = copies([block.name for block in found], [block.place or 0 for block in found])
    assert [copy.block for copy in some] == found
    outcomes = await within(disk.read(some))
    assert pool.right(some, outcomes) >= 32 - 8
    assert set(outcomes) <= {READ, CORRUPT}
    await within(disk.close())
