"""Workers that say which blocks they hold, and a router that listens.

worker a, worker a keeping 2 events     a worker starts; what it keeps for those who are behind
a stores 1 2 3, a stores 1 on host      (or disk)
a removes 3, a removes 1 on host
a clears                                its cache is empty
a stops
deliver a                               all that it has to say, on a connection that is made first if need be
lose a                                  the next thing it says does not arrive
late a 2                                its event 2 arrives once more
disconnect a
router, router with room for 5 blocks   a router starts, in place of the one before
index                                   what the router knows
match 1 2 3                             who holds the beginning of that
"""

import re
from collections.abc import Callable, Iterator

from dynamo.protocols.kv_events import AllBlocksCleared, KvEventBatch, Tier
from dynamo.runtime.event_feed import DumpEnd, FeedEvent, FeedItem, Step
from dynamo.tokens import hash_array
from tests.router.feed_world import Worker, World, removed, stored

_WORDS = {
    Step.APPLY: "applied",
    Step.REPLACE: "applied",
    Step.NOTHING: "known already",
    Step.GAP: "something is missing before it",
}


class _Told(World):
    """A World that tells what arrives at the router."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.names: dict[int, str] = {}
        super().__init__(events_max=100)

    def take(self, worker: Worker, item: FeedItem) -> Step:
        step = super().take(worker, item)
        if not isinstance(item, FeedEvent | DumpEnd):
            return step  # a part of a dump
        what = f"event {item.id}" if isinstance(item, FeedEvent) else f"dump as of event {item.id}"
        self.log.append(f"{self.names[worker.instance_id]}: {what} {_WORDS[step]}")
        return step


class KvEventsWorld:
    def __init__(self) -> None:
        self._world = _Told()
        self._workers: dict[str, Worker] = {}
        self._commands: list[tuple[str, Callable[..., Iterator[str] | None]]] = [
            (r"worker (\w+)(?: keeping (\d+) events)?", self._start),
            (r"(\w+) stores ([\d ]+)(?: on (\w+))?", self._store),
            (r"(\w+) removes ([\d ]+)(?: on (\w+))?", self._remove),
            (r"(\w+) clears", self._clear),
            (r"(\w+) stops", self._stop),
            (r"deliver (\w+)", self._deliver),
            (r"lose (\w+)", self._lose),
            (r"late (\w+) (\d+)", self._late),
            (r"disconnect (\w+)", self._disconnect),
            (r"router(?: with room for (\d+) blocks)?", self._router),
            (r"index", self._index),
            (r"match ([\d ]+)", self._match),
        ]

    def run(self, command: str) -> Iterator[str]:
        for pattern, action in self._commands:
            if match := re.fullmatch(pattern, command):
                yield from action(*match.groups()) or ()
                told, self._world.log = self._world.log, []
                yield from told
                return
        raise ValueError(f"no such command: {command}")

    def close(self) -> None:
        self._world.close()

    def _start(self, name: str, events_max: str | None) -> None:
        self._world.events_max = int(events_max or 100)
        self._workers[name] = self._world.start_worker()
        self._world.names[self._workers[name].instance_id] = name

    def _store(self, name: str, hashes: str, tier: str | None) -> None:
        self._workers[name].publish(KvEventBatch(0, [stored(*_numbers(hashes), tier=_tier(tier))]))

    def _remove(self, name: str, hashes: str, tier: str | None) -> None:
        self._workers[name].publish(KvEventBatch(0, [removed(*_numbers(hashes), tier=_tier(tier))]))

    def _clear(self, name: str) -> None:
        self._workers[name].publish(KvEventBatch(0, [AllBlocksCleared()]))

    def _stop(self, name: str) -> None:
        self._world.stop_worker(self._workers.pop(name))

    def _deliver(self, name: str) -> None:
        self._world.carry_all(self._workers[name])

    def _lose(self, name: str) -> None:
        assert self._world.carry(self._workers[name], "lost"), f"{name} has nothing to say"

    def _late(self, name: str, event_id: str) -> None:
        self._world.late(self._workers[name], int(event_id))

    def _disconnect(self, name: str) -> None:
        self._world.disconnect(self._workers[name])

    def _router(self, max_blocks: str | None) -> None:
        if max_blocks is not None:
            self._world.max_blocks = int(max_blocks)
        self._world.start_router()

    def _index(self) -> Iterator[str]:
        held: dict[str, list[str]] = {name: [] for name in sorted(self._workers)}
        tree = self._world.indexer.tree
        for worker, tier, hashes in tree.dump():
            held[self._world.names[worker.instance_id]].append(f"{tier.name.lower()} {_text(sorted(hashes))}")
        for name, parts in held.items():
            yield f"{name}: {', '.join(parts) or 'nothing'}"
        if tree.pruned:
            yield f"{tree.pruned} had to make room"

    def _match(self, hashes: str) -> Iterator[str]:
        overlaps = self._world.indexer.tree.find_matches(hash_array(_numbers(hashes))).overlaps
        for worker, overlap in sorted(overlaps.items(), key=lambda entry: self._world.names[entry[0].instance_id]):
            parts = [f"{count} on {tier.name.lower()}" for tier, count in zip(Tier, overlap, strict=True) if count]
            yield f"{self._world.names[worker.instance_id]}: {', '.join(parts)}"
        if not overlaps:
            yield "nobody"


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split()]


def _text(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def _tier(name: str | None) -> Tier:
    return Tier.DEVICE if name is None else Tier[name.upper()]
