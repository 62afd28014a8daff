"""What every discovery backend must do.

    @pytest.mark.parametrize("case", CASES)
    async def test_my_backend(case, store):
        await case(lambda: MyDiscovery(store))

A case is given a function that makes a new participant of the same map, as another process would have one; it closes
those that it makes.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from dynamo.runtime.discovery.base import Discovery, Put, Watch
from dynamo.testing.waiting import DEADLINE_S, within

Participant = Callable[[], Discovery]
Case = Callable[[Participant], Awaitable[None]]

ODD_KEYS = (
    "a/b/c",
    ".",
    "..",
    ".hidden",
    "~",
    "-rf *",
    "100%",
    "a%2Fb",
    "line\nbreak\0",
    "Ünïcode/模型/🚀",
    "long/" + "x" * 1000,
    "long/" + "x" * 1000 + "y",
)


async def follow(
    watch: Watch, until: dict[str, bytes], *, view: dict[str, bytes] | None = None, seconds: float = DEADLINE_S
) -> None:
    """Applies a watch's events to `view` (an empty map without it) until it is `until`.

    TimeoutError when it does not become so.
    """
    view = {} if view is None else view
    while view != until:
        event = await within(anext(watch), seconds)
        if isinstance(event, Put):
            view[event.key] = event.value
        else:
            view.pop(event.key, None)


@asynccontextmanager
async def participants(make: Participant, count: int = 2) -> AsyncIterator[list[Discovery]]:
    """`count` participants, closed at the end."""
    made = [make() for _ in range(count)]
    try:
        yield made
    finally:
        for participant in made:
            await participant.close()


async def entry_is_seen_by_others(make: Participant) -> None:
    async with participants(make) as (owner, other):
        watch = other.watch("")
        await owner.register("k", b"\x00value\n\xff")
        await follow(watch, {"k": b"\x00value\n\xff"})


async def watch_starts_with_what_is_there(make: Participant) -> None:
    async with participants(make) as (owner, other):
        for key in ("a", "b", "c"):
            await owner.register(key, key.encode())
        await follow(other.watch(""), {"a": b"a", "b": b"b", "c": b"c"})


async def own_entries_are_seen_at_once(make: Participant) -> None:
    async with participants(make, 1) as (owner,):
        first = owner.watch("")
        await owner.register("k", b"v")
        await follow(first, {"k": b"v"})
        await owner.register("l", b"w")
        assert sorted(event.key for event in owner.watch("").take()) == ["k", "l"]


async def changes_follow(make: Participant) -> None:
    async with participants(make) as (owner, other):
        watch = other.watch("")
        first = await owner.register("first", b"1")
        await follow(watch, {"first": b"1"})
        await owner.register("second", b"2")
        assert await within(anext(watch)) == Put("second", b"2")
        await first.withdraw()
        event = await within(anext(watch))
        assert not isinstance(event, Put)
        assert event.key == "first"


async def watch_keeps_to_its_prefix(make: Participant) -> None:
    async with participants(make) as (owner, other):
        watch = other.watch("models/a/")
        for key in ("models/a", "models/ab/1", "other/models/a/1", "models/a/1"):
            await owner.register(key, b"v")
        await follow(watch, {"models/a/1": b"v"})


async def withdrawal_is_idempotent(make: Participant) -> None:
    async with participants(make) as (owner, other):
        watch = other.watch("")
        registration = await owner.register("k", b"v")
        await follow(watch, {"k": b"v"})
        await registration.withdraw()
        await registration.withdraw()
        event = await within(anext(watch))
        assert event.key == "k"
        assert not isinstance(event, Put)


async def taken_key_is_refused(make: Participant) -> None:
    async with participants(make) as (owner, other):
        await owner.register("k", b"mine")
        for participant in (owner, other):
            try:
                await participant.register("k", b"stolen")
            except ValueError:
                continue
            raise AssertionError("a taken key was given away")
        await follow(other.watch(""), {"k": b"mine"})


async def freed_key_belongs_to_its_new_owner(make: Participant) -> None:
    async with participants(make, 3) as (first, second, other):
        old = await first.register("k", b"old")
        await old.withdraw()
        await second.register("k", b"new")
        await old.withdraw()
        await first.close()
        await follow(other.watch(""), {"k": b"new"})


async def closing_withdraws_only_ones_own(make: Participant) -> None:
    async with participants(make, 3) as (owner, neighbour, other):
        watch = other.watch("")
        await owner.register("a", b"1")
        await owner.register("b", b"2")
        await neighbour.register("c", b"3")
        await follow(watch, {"a": b"1", "b": b"2", "c": b"3"})
        await owner.close()
        await owner.close()
        gone = {(await within(anext(watch))).key, (await within(anext(watch))).key}
        assert gone == {"a", "b"}
        await follow(other.watch(""), {"c": b"3"})


async def closing_ends_the_watches(make: Participant) -> None:
    async with participants(make, 1) as (participant,):
        watches = [participant.watch(""), participant.watch("k")]
        await participant.close()
        for watch in watches:
            assert [event async for event in watch] == []


async def closed_watch_ends(make: Participant) -> None:
    async with participants(make) as (owner, other):
        closed, kept = other.watch(""), other.watch("")
        closed.close()
        closed.close()
        await owner.register("k", b"v")
        await follow(kept, {"k": b"v"})
        assert [event async for event in closed] == []


async def reader_that_was_cancelled_misses_nothing(make: Participant) -> None:
    async with participants(make) as (owner, other):
        watch = other.watch("")
        reader = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])
        await owner.register("k", b"v")
        assert await within(anext(watch)) == Put("k", b"v")


async def slow_watcher_gets_the_latest_of_each_key(make: Participant) -> None:
    async with participants(make) as (owner, other):
        slow, quick = other.watch(""), other.watch("")
        for turn in range(10):
            registration = await owner.register("k", b"%d" % turn)
            await follow(quick, {"k": b"%d" % turn})
            await registration.withdraw()
            await within(anext(quick))
        await owner.register("k", b"last")
        await owner.register("end", b"")
        await follow(quick, {"k": b"last", "end": b""})
        events = [await within(anext(slow)), await within(anext(slow))]
        assert {event.key: event for event in events} == {"k": Put("k", b"last"), "end": Put("end", b"")}


async def many_watchers_see_the_same(make: Participant) -> None:
    async with participants(make, 5) as (owner, *others):
        watches = [other.watch("") for other in others for _ in range(20)]
        await owner.register("k", b"v")
        for watch in watches:
            await follow(watch, {"k": b"v"})


async def any_key_and_value_will_do(make: Participant) -> None:
    async with participants(make) as (owner, other):
        entries = {key: key.encode() * 2 for key in ODD_KEYS} | {"empty": b"", "large": bytes(1 << 20)}
        watch = other.watch("")
        for key, value in entries.items():
            await owner.register(key, value)
        await follow(watch, entries)


CASES: tuple[Case, ...] = (
    entry_is_seen_by_others,
    watch_starts_with_what_is_there,
    own_entries_are_seen_at_once,
    changes_follow,
    watch_keeps_to_its_prefix,
    withdrawal_is_idempotent,
    taken_key_is_refused,
    freed_key_belongs_to_its_new_owner,
    closing_withdraws_only_ones_own,
    closing_ends_the_watches,
    closed_watch_ends,
    reader_that_was_cancelled_misses_nothing,
    slow_watcher_gets_the_latest_of_each_key,
    many_watchers_see_the_same,
    any_key_and_value_will_do,
)
