"""The KV router in the simulated cluster."""

import random
from collections.abc import Collection

from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import KvEventBatch
from dynamo.protocols.routing import Prospect
from dynamo.router.config import KvRouterConfig
from dynamo.router.indexer import KvIndexer
from dynamo.router.routing import RoutingDecision, RoutingRequest, WorkerLimits
from dynamo.router.scheduler import KvScheduler
from dynamo.simulator.router_core import Placement
from dynamo.tokens import TokenArray


class KvCore:
    """Drives the real KvScheduler; with or without events, as `config` says."""

    def __init__(
        self, config: KvRouterConfig, block_size: int, workers: int, limits: WorkerLimits, rng: random.Random
    ) -> None:
        """`limits`: of every worker."""
        self.wants_cache_events = config.use_kv_events
        self._indexer = KvIndexer(config.router_max_tree_size)
        self._scheduler = KvScheduler(config, block_size, rng, self._indexer.tree, lambda _: config.use_kv_events)
        self._limits = limits
        self._placed: list[Placement] = []
        self._scheduler.set_workers({WorkerId(index): limits for index in range(workers)})

    @property
    def requests(self) -> int:
        """That the workers have, as far as the router knows."""
        return self._scheduler.sequences.requests

    def set_workers(self, workers: Collection[int], now_s: float) -> None:
        for known in list(self._scheduler.workers()):
            if known.instance_id not in workers:
                self._indexer.forget(known.instance_id)
        self._scheduler.set_workers({WorkerId(index): self._limits for index in workers})
        self._admit(now_s)

    def submit(self, request_id: int, token_ids: TokenArray, now_s: float, *, prefilled: bool) -> None:
        request = RoutingRequest(request_id=str(request_id), token_ids=token_ids, prefilled=prefilled)
        decision = self._scheduler.submit(request, now_s)
        if decision is not None:
            self._place(decision)

    def prospect(self, token_ids: TokenArray, now_s: float) -> Prospect:
        """What a request would find at the worker that it would be given now."""
        return self._scheduler.prospect(RoutingRequest(request_id="", token_ids=token_ids), now_s)

    def first_token(self, request_id: int, now_s: float) -> None:
        self._scheduler.first_token(str(request_id), now_s)
        self._admit(now_s)

    def output(self, request_id: int, tokens: int, now_s: float) -> None:
        self._scheduler.output(str(request_id), tokens, now_s)

    def free(self, request_id: int, now_s: float) -> None:
        self._scheduler.free(str(request_id))
        self._admit(now_s)

    def cache_changed(self, worker: int, batch: KvEventBatch) -> None:
        self._indexer.apply(worker, batch)

    def take_placed(self) -> list[Placement]:
        placed, self._placed = self._placed, []
        return placed

    def _admit(self, now_s: float) -> None:
        if self._scheduler.queued:
            for admitted in self._scheduler.take_admitted(now_s):
                assert admitted.decision is not None  # where no worker is left, nothing is queued
                self._place(admitted.decision)

    def _place(self, decision: RoutingDecision) -> None:
        self._placed.append(Placement(int(decision.request_id), decision.worker.instance_id))
