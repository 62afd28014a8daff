"""A scheduler and what tests do with it."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import Tier
from dynamo.protocols.load import WorkerLoad
from dynamo.router.config import KvRouterConfig
from dynamo.router.radix_tree import RadixTree
from dynamo.router.routing import RoutingDecision, RoutingRequest, WorkerLimits
from dynamo.router.scheduler import KvScheduler
from dynamo.tokens import HASH_SEED, sequence_hashes, token_array

BLOCK_SIZE = 4
BATCH_TOKENS = 100
A, B, C = WorkerId(1), WorkerId(2), WorkerId(3)
UNIT_WEIGHTS = {  # a block to prefill is a block: costs can be read
    "overlap_score_weight": 1.0,
    "host_cache_hit_weight": 0.75,
    "disk_cache_hit_weight": 0.25,
    "prefill_load_scale": 1.0,
}


def prompt(first: int, tokens: int = 40) -> list[int]:
    """Tokens that no prompt with another `first` has."""
    return list(range(first, first + tokens))


@dataclass(slots=True)
class Fleet:
    """A scheduler, its workers, and a clock that stands still unless it is set."""

    scheduler: KvScheduler
    tree: RadixTree
    feeds: set[int]  # instances whose events are heard
    now_s: float = 0.0
    numbers: dict[str, int] = field(default_factory=dict)

    def submit(self, request_id: str, tokens: Iterable[int], **fields: Any) -> RoutingDecision | None:
        return self.scheduler.submit(self.request(request_id, tokens, **fields), self.now_s)

    def sent(self, request_id: str, tokens: Iterable[int], **fields: Any) -> RoutingDecision:
        """Submits what does not have to wait."""
        decision = self.submit(request_id, tokens, **fields)
        assert decision is not None
        assert decision.request_id == request_id
        return decision

    def worker(self, request_id: str, tokens: Iterable[int], **fields: Any) -> WorkerId:
        return self.sent(request_id, tokens, **fields).worker

    def look(self, tokens: Iterable[int], **fields: Any) -> RoutingDecision:
        return self.scheduler.look(self.request("look", tokens, **fields), self.now_s)

    def cached(self, tokens: Iterable[int]) -> dict[WorkerId, int]:
        """How many blocks of it each worker is thought to have; those with none are left out."""
        candidates = self.look(tokens, explain=True).candidates
        return {c.worker: c.overlap.total for c in candidates if c.overlap.total}

    def reason(self, tokens: Iterable[int], **fields: Any) -> str | None:
        return self.look(tokens, explain=True, **fields).no_overlap_reason

    def request(self, request_id: str, tokens: Iterable[int], **fields: Any) -> RoutingRequest:
        return RoutingRequest(request_id=request_id, token_ids=token_array(tokens), **fields)

    def stored(
        self, worker: WorkerId, tokens: Iterable[int], tier: Tier = Tier.DEVICE, *, seed: int = HASH_SEED
    ) -> None:
        """The worker says that it has this."""
        self.tree.store(worker, sequence_hashes(token_array(tokens), BLOCK_SIZE, seed), tier)

    def busy(self, worker: WorkerId, tokens: int) -> str:
        """Sends a prompt like no other to the worker; its id."""
        request_id = f"busy-{len(self.numbers)}"
        self.numbers[request_id] = tokens
        first = 1_000_000 + 10_000 * len(self.numbers)
        assert self.worker(request_id, prompt(first, tokens), eligible=only(worker)) == worker
        return request_id

    def admitted(self) -> dict[str, WorkerId | None]:
        taken = self.scheduler.take_admitted(self.now_s)
        return {a.request_id: a.decision.worker if a.decision is not None else None for a in taken}

    def set_workers(self, *workers: WorkerId) -> None:
        self.scheduler.set_workers(dict.fromkeys(workers, WorkerLimits(max_num_batched_tokens=BATCH_TOKENS)))

    def says(self, worker: WorkerId, load: WorkerLoad) -> list[str]:
        """All are asked, and this one answers at once; the requests that it cannot have any more."""
        self.scheduler.expect_loads()
        return self.scheduler.on_load(worker, load, self.now_s)

    def loads(self) -> dict[WorkerId, tuple[int, int, int]]:
        """Requests, tokens to prefill and blocks of each worker, foreign ones included."""
        return {w: (a.requests, a.prefill_tokens, a.blocks) for w, a in self.scheduler.activities()}


def make_fleet(*workers: WorkerId, feeds: bool = True, seed: int = 0, **settings: Any) -> Fleet:
    """Workers with events, or without any. Weights are 1 unless `settings` say otherwise."""
    return fleet_of(KvRouterConfig(**{**UNIT_WEIGHTS, **settings}), *workers, feeds=feeds, seed=seed)


def fleet_of(config: KvRouterConfig, *workers: WorkerId, feeds: bool = True, seed: int = 0) -> Fleet:
    """The same with that configuration."""
    tree = RadixTree()
    heard = {worker.instance_id for worker in workers} if feeds else set()
    scheduler = KvScheduler(config, BLOCK_SIZE, random.Random(seed), tree, heard.__contains__)
    fleet = Fleet(scheduler, tree, heard)
    fleet.set_workers(*workers)
    return fleet


def only(*workers: WorkerId) -> Callable[[WorkerId], bool]:
    return workers.__contains__
