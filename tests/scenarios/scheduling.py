"""Workers, requests and a scheduler that brings them together. A block has 4 tokens; block n is four times token n.

config router_session_affinity=hard     all begins anew, with that; also router_queue_threshold=1 and the like
worker a, worker b                      each takes batches of 100 tokens
gone a
a has 1 2 3                             it says that it has cached these blocks
r1 asks 1 2 3                           where the request goes
r2 asks 1 2 3 in session s, r2 asks 1 2 3 with priority 5
r1 begins                               its first token
r1 ends
later 10                                seconds pass
a says 2 requests, 30 tokens, 8 blocks  how busy it is by its own account: requests, tokens to prefill, KV blocks
load                                    what each worker is busy with, by all accounts
"""

import dataclasses
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

from dynamo.clock import VirtualClock
from dynamo.config import settings
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.load import WorkerLoad
from dynamo.router.config import KvRouterConfig
from dynamo.router.radix_tree import RadixTree
from dynamo.router.routing import RoutingDecision, RoutingRequest, WorkerLimits
from dynamo.router.scheduler import KvScheduler
from dynamo.tokens import TokenArray, sequence_hashes, token_array

BLOCK_SIZE = 4
LIMITS = WorkerLimits(max_num_batched_tokens=100)


class SchedulingWorld:
    def __init__(self) -> None:
        self._clock = VirtualClock()
        self._config = KvRouterConfig()
        self._tree = RadixTree()
        self._scheduler = self._make()
        self._workers: dict[str, WorkerId] = {}
        self._started = 0  # workers
        self._commands: list[tuple[str, Callable[..., Iterator[str] | None]]] = [
            (r"config (\w+)=(\S+)", self._configure),
            (r"worker (\w+)", self._start),
            (r"gone (\w+)", self._gone),
            (r"(\w+) has ([\d ]+)", self._cache),
            (r"(\w+) asks ([\d ]+?)(?: in session (\w+))?(?: with priority (\d+))?", self._ask),
            (r"(\w+) begins", self._begin),
            (r"(\w+) ends", self._end),
            (r"later (\d+)", self._later),
            (r"(\w+) says (\d+) requests, (\d+) tokens, (\d+) blocks", self._say),
            (r"load", self._load),
        ]

    def run(self, command: str) -> Iterator[str]:
        for pattern, action in self._commands:
            if match := re.fullmatch(pattern, command):
                yield from action(*match.groups()) or ()
                return
        raise ValueError(f"no such command: {command}")

    def close(self) -> None:
        pass

    def _make(self) -> KvScheduler:
        return KvScheduler(self._config, BLOCK_SIZE, random.Random(0), self._tree, lambda _: True)

    def _configure(self, name: str, value: str) -> None:
        (setting,) = [setting for setting in settings(KvRouterConfig) if setting.name == name]
        changed: dict[str, Any] = {name: setting.type(value)}
        self._config = dataclasses.replace(self._config, **changed)
        self._tree = RadixTree()
        self._scheduler = self._make()
        self._workers.clear()

    def _start(self, name: str) -> None:
        self._started += 1
        self._workers[name] = WorkerId(self._started)
        self._scheduler.set_workers(dict.fromkeys(self._workers.values(), LIMITS))

    def _gone(self, name: str) -> Iterator[str]:
        self._tree.remove_worker(self._workers.pop(name))
        self._scheduler.set_workers(dict.fromkeys(self._workers.values(), LIMITS))
        yield from self._admitted()

    def _cache(self, name: str, blocks: str) -> None:
        self._tree.store(self._workers[name], sequence_hashes(_tokens(blocks), BLOCK_SIZE))

    def _ask(self, request_id: str, blocks: str, session: str | None, priority: str | None) -> Iterator[str]:
        request = RoutingRequest(
            request_id=request_id,
            token_ids=_tokens(blocks),
            session_id=session,
            priority=float(priority or 0),
            explain=True,
        )
        decision = self._scheduler.submit(request, self._clock.now_s())
        yield f"{request_id} waits" if decision is None else self._told(decision)

    def _begin(self, request_id: str) -> Iterator[str]:
        self._scheduler.first_token(request_id, self._clock.now_s())
        yield from self._admitted()

    def _end(self, request_id: str) -> Iterator[str]:
        self._scheduler.free(request_id)
        yield from self._admitted()

    def _say(self, name: str, requests: str, tokens: str, blocks: str) -> Iterator[str]:
        self._scheduler.expect_loads()
        load = WorkerLoad(running_requests=int(requests), prefill_tokens=int(tokens), kv_used_blocks=int(blocks))
        for request_id in self._scheduler.on_load(self._workers[name], load, self._clock.now_s()):
            yield f"{request_id} is lost"
        yield from self._admitted()

    def _later(self, seconds: str) -> None:
        self._clock.advance(float(seconds))

    def _load(self) -> Iterator[str]:
        names = {worker: name for name, worker in self._workers.items()}
        for worker, activity in self._scheduler.activities():
            told = f"{names[worker]}: {activity.prefill_tokens} tokens to prefill, {activity.blocks} blocks"
            foreign = activity.foreign_prefill_tokens, activity.foreign_blocks
            yield f"{told}, of these {foreign[0]} and {foreign[1]} foreign" if any(foreign) else told

    def _admitted(self) -> Iterator[str]:
        for admitted in self._scheduler.take_admitted(self._clock.now_s()):
            assert admitted.decision is not None
            yield self._told(admitted.decision)

    def _told(self, decision: RoutingDecision) -> str:
        name = next(name for name, worker in self._workers.items() if worker == decision.worker)
        why = decision.no_overlap_reason or f"{decision.overlap.total} of {decision.prompt_blocks} blocks"
        return f"{decision.request_id} to {name}: {why}"


def _tokens(blocks: str) -> TokenArray:
    return token_array(token for block in blocks.split() for token in [int(block)] * BLOCK_SIZE)
