import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from dynamo.errors import ConnectionLostError, OverloadedError, UnavailableError
from dynamo.kvbm.effects import Fetch, Find, Forget, Write
from dynamo.kvbm.storage.base import Copy, Outcome, Stored
from dynamo.kvbm.tier_runner import BATCH_BLOCKS, CALLS_MAX, TierRunner
from dynamo.protocols.kvbm import StorageTier
from dynamo.runtime.backoff import Backoff
from dynamo.testing.waiting import eventually
from tests.kvbm.scripted_storage import ScriptedStorage

DISK = StorageTier.DISK


class Recorder:
    """As Outcomes."""

    def __init__(self) -> None:
        self.said: list[tuple[str, object]] = []

    def written(self, tier: StorageTier, block: Stored, seconds: float) -> None:
        self.said.append(("written", block.key))

    def write_failed(self, tier: StorageTier, block: Stored) -> None:
        self.said.append(("write failed", block.key))

    def fetched(self, tier: StorageTier, copy: Copy, outcome: Outcome, seconds: float) -> None:
        self.said.append((f"fetched {outcome.name}", copy.block.key))

    def fetch_failed(self, tier: StorageTier, copy: Copy) -> None:
        self.said.append(("fetch failed", copy.block.key))

    def found(self, tier: StorageTier, lookup: int, count: int) -> None:
        self.said.append(("found", (lookup, count)))

    def tier_opened(self, tier: StorageTier, blocks: Sequence[Stored]) -> None:
        self.said.append(("opened", len(blocks)))

    def tier_lost(self, tier: StorageTier) -> None:
        self.said.append(("lost", tier))

    def count(self, what: str) -> int:
        return sum(said == what for said, _ in self.said)


@pytest.fixture
def storage() -> ScriptedStorage:
    return ScriptedStorage()


@pytest.fixture
def outcomes() -> Recorder:
    return Recorder()


@pytest.fixture
async def runner(storage: ScriptedStorage, outcomes: Recorder) -> AsyncIterator[TierRunner]:
    runner = TierRunner(storage, outcomes, call_timeout_s=0.2, backoff=Backoff(0.001, 0.01))
    runner.start()
    await eventually(lambda: runner.is_open)
    yield runner
    await runner.close()
    assert storage.closed == 1


def block(number: int) -> Stored:
    return Stored(bytes([number]), number, number)


def copy(number: int) -> Copy:
    return Copy(number, block(number))


async def test_batches_a_few_at_a_time(runner: TierRunner, storage: ScriptedStorage, outcomes: Recorder) -> None:
    storage.go.clear()
    for number in range(200):
        runner.do(Write(DISK, copy(number)))
    runner.pump()
    await eventually(lambda: storage.under_way == CALLS_MAX)
    assert runner.queued == 200 - CALLS_MAX * BATCH_BLOCKS
    storage.go.set()
    await eventually(lambda: outcomes.count("written") == 200)
    assert storage.most_under_way == CALLS_MAX
    assert max(len(keys) for _, keys in storage.calls) == BATCH_BLOCKS


async def test_reads_go_before_writes(runner: TierRunner, storage: ScriptedStorage, outcomes: Recorder) -> None:
    for number in range(100):
        runner.do(Write(DISK, copy(number)))
    for number in range(100, 200):
        runner.do(Fetch(DISK, copy(number)))
    runner.pump()
    await eventually(lambda: outcomes.count("written") == 100)
    names = [name for name, _ in storage.calls]
    assert names[:CALLS_MAX] == ["read"] * CALLS_MAX
    assert names.index("write") >= -(-100 // BATCH_BLOCKS), "no write began before the last read did"
    assert outcomes.count("fetched ABSENT") == 100


async def test_a_place_is_written_again_only_after_what_was_there_is_forgotten(
    runner: TierRunner, storage: ScriptedStorage, outcomes: Recorder
) -> None:
    storage.go.clear()
    runner.do(Forget(DISK, block(1)))
    runner.do(Write(DISK, Copy(9, Stored(b"new", 9, 1))))
    runner.do(Write(DISK, copy(2)))
    runner.pump()
    await eventually(lambda: storage.under_way == 2)
    assert storage.calls == [("forget", [b"\1"]), ("write", [b"\2"])]
    storage.go.set()
    await eventually(lambda: outcomes.count("written") == 2)
    assert storage.calls[-1] == ("write", [b"new"])


async def test_what_is_under_way_is_not_forgotten_before_it_has_ended(
    runner: TierRunner, storage: ScriptedStorage, outcomes: Recorder
) -> None:
    storage.go.clear()
    runner.do(Write(DISK, copy(1)))
    runner.pump()
    runner.do(Forget(DISK, block(1)))
    runner.pump()
    await eventually(lambda: storage.under_way == 1)
    storage.go.set()
    await eventually(lambda: len(storage.calls) == 2 and not storage.under_way)
    assert [name for name, _ in storage.calls] == ["write", "forget"]
    assert not storage.blocks


async def test_a_tier_that_fails_is_lost_once_and_comes_back(
    runner: TierRunner, storage: ScriptedStorage, outcomes: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    storage.error = ConnectionLostError("the disk is gone")
    storage.blocks[b"\5"] = block(5)
    for number in range(4 * BATCH_BLOCKS):
        runner.do(Fetch(DISK, copy(number)))
    runner.do(Write(DISK, copy(99)))
    runner.do(Find(DISK, 7, (b"a",)))
    runner.pump()
    await eventually(lambda: storage.opened >= 4)
    assert (outcomes.count("fetch failed"), outcomes.count("write failed"), outcomes.count("lost")) == (64, 1, 1)
    assert ("found", (7, 0)) in outcomes.said
    assert runner.reason == "the disk is gone"

    runner.do(Fetch(DISK, copy(1)))
    runner.pump()
    assert outcomes.said[-1] == ("fetch failed", b"\1"), "nothing waits for a tier that is lost"
    storage.error = None
    await eventually(lambda: runner.is_open)
    opened: tuple[str, object] = ("opened", 1)
    assert outcomes.said[-1] == opened
    assert caplog.text.count("is not used: the disk is gone") == 1
    assert caplog.text.count("the disk is back") == 1


async def test_one_that_opens_well_and_fails_at_once_is_tried_ever_more_seldom(
    storage: ScriptedStorage, outcomes: Recorder
) -> None:
    delays = Backoff(0.001, 0.064)
    runner = TierRunner(storage, outcomes, backoff=delays)
    runner.start()
    for failures in range(1, 7):
        await eventually(lambda: runner.is_open)
        storage.error = ConnectionLostError("flaky")
        runner.do(Fetch(DISK, copy(1)))
        runner.pump()
        await eventually(lambda: outcomes.count("lost") == failures)  # noqa: B023
        storage.error = None
    await eventually(lambda: runner.is_open)
    assert delays.next_s() >= 0.032, "it has doubled each time"
    storage.blocks[b"\1"] = block(1)
    runner.do(Fetch(DISK, copy(1)))
    runner.pump()
    await eventually(lambda: outcomes.count("fetched READ") == 1)
    assert delays.next_s() <= 0.001
    await runner.close()


async def test_a_tier_that_hangs_is_lost_when_its_time_is_up(
    runner: TierRunner, storage: ScriptedStorage, outcomes: Recorder
) -> None:
    storage.go.clear()
    runner.do(Fetch(DISK, copy(1)))
    runner.do(Find(DISK, 7, (b"a",)))
    runner.pump()
    await eventually(lambda: outcomes.count("lost") == 1)
    assert ("fetch failed", b"\1") in outcomes.said
    await eventually(lambda: ("found", (7, 0)) in outcomes.said)
    storage.go.set()
    await eventually(lambda: runner.is_open)


async def test_a_full_disk_serves_what_it_has(
    runner: TierRunner, storage: ScriptedStorage, outcomes: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    storage.error = OverloadedError("no space left")
    for number in range(2):
        runner.do(Write(DISK, copy(number)))
        runner.pump()
        await eventually(lambda: outcomes.count("write failed") == number + 1)  # noqa: B023
    assert outcomes.count("lost") == 0
    assert runner.is_open
    assert caplog.text.count("no space left") == 1
    storage.error = None
    storage.blocks[b"\5"] = block(5)
    runner.do(Fetch(DISK, copy(5)))
    runner.pump()
    await eventually(lambda: outcomes.count("fetched READ") == 1)


async def test_a_defect_is_a_failure(
    runner: TierRunner, storage: ScriptedStorage, outcomes: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    async def read(copies: Sequence[Copy]) -> list[Outcome]:
        raise KeyError("a defect")

    storage.read = read  # type: ignore[method-assign]
    runner.do(Fetch(DISK, copy(1)))
    runner.pump()
    await eventually(lambda: outcomes.count("lost") == 1)
    assert "KeyError" in caplog.text


async def test_it_is_opened_as_often_as_need_be(storage: ScriptedStorage, outcomes: Recorder) -> None:
    storage.error = ConnectionLostError("not mounted")
    runner = TierRunner(storage, outcomes, backoff=Backoff(0.001, 0.01))
    runner.start()
    await eventually(lambda: storage.opened > 3)
    storage.error = None
    await eventually(lambda: runner.is_open)
    await runner.close()


class Verbose(ScriptedStorage):
    """Says each time for how long it has tried, as object stores do."""

    async def open(self) -> list[Stored]:
        self.opened += 1
        if self.error is not None:
            raise ConnectionLostError(f"{self.error}, tried for {self.opened} ms")
        return []


async def test_what_is_wrong_is_said_once_whatever_it_says_of_itself(
    outcomes: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Verbose()
    storage.error = ConnectionLostError("the store is away")
    runner = TierRunner(storage, outcomes, backoff=Backoff(0.001, 0.01))
    runner.start()
    await eventually(lambda: storage.opened >= 4)
    assert runner.reason != "the store is away, tried for 1 ms", "the newest is shown"
    storage.error = None
    await eventually(lambda: runner.is_open)
    assert caplog.text.count("the store is away") == 1
    await runner.close()


async def test_a_defect_while_it_is_opened_is_a_failure(storage: ScriptedStorage, outcomes: Recorder) -> None:
    storage.error = ValueError("embedded null byte")
    runner = TierRunner(storage, outcomes, backoff=Backoff(0.001, 0.01))
    runner.start()
    await eventually(lambda: storage.opened > 3)
    assert "null byte" in runner.reason
    storage.error = None
    await eventually(lambda: runner.is_open)
    await runner.close()


async def test_closing_ends_what_is_under_way(storage: ScriptedStorage, outcomes: Recorder) -> None:
    runner = TierRunner(storage, outcomes)
    runner.start()
    await eventually(lambda: runner.is_open)
    storage.go.clear()
    runner.do(Fetch(DISK, copy(1)))
    runner.pump()
    await eventually(lambda: storage.under_way == 1)
    async with asyncio.timeout(5):
        await runner.close()
    assert (storage.under_way, storage.closed) == (0, 1)


async def test_what_is_not_open_cannot_be_cleared(storage: ScriptedStorage, outcomes: Recorder) -> None:
    """It would come back with all that it holds."""
    storage.error = ConnectionLostError("gone")
    runner = TierRunner(storage, outcomes)
    runner.start()
    await eventually(lambda: storage.opened > 0)
    with pytest.raises(UnavailableError, match="gone"):
        await runner.clear()
    await runner.close()
