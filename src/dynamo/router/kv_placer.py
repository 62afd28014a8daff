"""KV routing within a process: the scheduler, what it hears of the workers, and the requests that wait for it."""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from dynamo.errors import NoInstancesError, RequestCancelledError
from dynamo.protocols.generation import PreprocessedRequest, WorkerId
from dynamo.protocols.load import LOAD_ENDPOINT, WorkerLoad
from dynamo.protocols.model_card import RuntimeLimits
from dynamo.protocols.replica_sync import PrefillDone, SequenceFreed
from dynamo.protocols.routing import Prospect
from dynamo.router.config import KvRouterConfig
from dynamo.router.indexer import RANKS_MAX, KvIndexer
from dynamo.router.kv_placement import KvPlacement
from dynamo.router.load_watcher import LoadWatcher
from dynamo.router.placement import Placement
from dynamo.router.publisher import KV_EVENTS_ENDPOINT
from dynamo.router.replica_sync import ReplicaSync
from dynamo.router.routing import RoutingDecision, RoutingRequest, WorkerLimits
from dynamo.router.routing_report import routing_report
from dynamo.router.scheduler import KvScheduler
from dynamo.router.subscriber import FeedSubscriber
from dynamo.runtime.background import kept_up
from dynamo.runtime.client import Client
from dynamo.runtime.context import Context
from dynamo.runtime.deadline import in_time
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.event_feed import FeedItem
from dynamo.runtime.instance import EndpointId
from dynamo.telemetry.router_metrics import IndexFigures, RouterFigures, WorkerFigures
from dynamo.tokens import block_seed

logger = logging.getLogger(__name__)

_SWEEP_INTERVAL_S = 30.0


class KvPlacer:
    """The Placer of RouterMode.KV, for the workers of one model behind one endpoint: set_instances() says which.

    Owns its subscriptions to the workers; close() ends them.
    """

    def __init__(
        self,
        runtime: DistributedRuntime,
        endpoint: EndpointId,
        block_size: int,
        config: KvRouterConfig,
        model: str = "",
        rng: random.Random | None = None,
    ) -> None:
        """`block_size` in tokens, as the model's card says; routers share their load if they have the same `model`."""
        rng = rng or random.Random()  # noqa: S311 - no secrets here
        self.indexer = KvIndexer(config.router_max_tree_size)
        self.scheduler = KvScheduler(config, block_size, rng, self.indexer.tree, self._has_feed)
        self.figures = RouterFigures()
        self._instances: dict[int, RuntimeLimits] = {}
        self._waiting: dict[str, asyncio.Future[RoutingDecision]] = {}
        self._numbers = itertools.count()
        self._events: Client | None = None
        self._subscriber: FeedSubscriber | None = None
        if config.use_kv_events:
            self._events = runtime.client(endpoint.beside(KV_EVENTS_ENDPOINT), FeedItem)
            self._subscriber = FeedSubscriber(self._events, self.indexer, event_plane=runtime.event_plane)
            self._subscriber.follow_only(())
        self._sync: ReplicaSync | None = None
        if config.router_replica_sync:
            self._sync = ReplicaSync(runtime, endpoint, model, self.scheduler, _now_s, self._admit)
        loads = runtime.client(endpoint.beside(LOAD_ENDPOINT), list[WorkerLoad])
        self._loads = LoadWatcher(
            loads, self._serves, self._on_ask, self._on_load, self._on_told, event_plane=runtime.event_plane
        )
        self._sweeper = kept_up(self._sweep, f"sweep-{endpoint}")

    async def close(self) -> None:
        """Ends all subscriptions. Requests that wait get NoInstancesError; those under way go on."""
        self.set_instances({})
        self._sweeper.cancel()
        await asyncio.wait([self._sweeper])
        await self._loads.close()
        if self._sync is not None:
            await self._sync.close()
        if self._subscriber is not None and self._events is not None:
            await self._subscriber.close()
            await self._events.close()

    def set_instances(self, instances: Mapping[int, RuntimeLimits]) -> None:
        """Which instances serve the model, and what each was started with."""
        self._instances = dict(instances)
        if self._subscriber is not None:
            self._subscriber.follow_only(instances)
        self.scheduler.set_workers(
            {
                WorkerId(instance_id, dp_rank): WorkerLimits(max_num_batched_tokens=limits.max_num_batched_tokens)
                for instance_id, limits in self._instances.items()
                for dp_rank in range(min(limits.data_parallel_size, RANKS_MAX))
            }
        )
        self._admit()

    async def place(
        self,
        request: PreprocessedRequest | None,
        context: Context,
        instances: Sequence[int],
        target: WorkerId | None,
    ) -> Placement:
        assert request is not None, "models whose requests have no tokens yet get another placer"
        explain = request.explain_routing or logger.isEnabledFor(logging.DEBUG)
        routing = self._routing(request, instances, pinned=target is not None, explain=explain)
        decision = await self.decide(routing, context)
        report = routing_report(decision, self.scheduler.block_size) if explain else None
        if report is not None:
            logger.debug("request %s: %s", context.id(), report)
        return KvPlacement(
            self,
            decision,
            report if request.explain_routing else None,
            prompt_tokens=None if routing.prefilled else len(request.token_ids),
            block_size=self.scheduler.block_size,
        )

    def check(self, target: WorkerId | None) -> None:
        """Any worker may be named, or none."""

    async def prospect(
        self, request: PreprocessedRequest, context: Context, instances: Sequence[int]
    ) -> Prospect | None:
        return self.foresee(self._routing(request, instances, pinned=False, explain=False))

    def foresee(self, routing: RoutingRequest) -> Prospect | None:
        """What decide() would give the request now, without consequences; None where nobody may serve it."""
        try:
            return self.scheduler.prospect(routing, _now_s())
        except NoInstancesError:
            return None

    def _routing(
        self, request: PreprocessedRequest, instances: Sequence[int], *, pinned: bool, explain: bool
    ) -> RoutingRequest:
        return RoutingRequest(
            request_id=str(next(self._numbers)),  # the client's own id need not be unique
            token_ids=request.token_ids,
            seed=block_seed(cache_salt=request.cache_salt),
            priority=request.priority,
            session_id=request.session_id,
            prefilled=request.handoff is not None,
            explain=explain,
            eligible=self.eligible(instances, request.dp_rank, pinned=pinned),
        )

    async def decide(self, routing: RoutingRequest, context: Context) -> RoutingDecision:
        """Gives the request its worker, whose load it is until free(); waits in the queue where it has to.

        Raises NoInstancesError, OverloadedError, RequestCancelledError, DeadlineExceededError.
        """
        started_s = time.perf_counter()
        decision = self.scheduler.submit(routing, _now_s())
        self.figures.decision_seconds.observe(time.perf_counter() - started_s)
        if decision is not None:
            self._publish_added(routing.request_id)
        else:
            decision = await self._admitted(routing.request_id, context)
        self.figures.decided(
            overlap_tokens=0 if routing.prefilled else decision.overlap.total * self.scheduler.block_size,
            cost=decision.cost,
            mean_cost=decision.mean_cost,
            queued_s=decision.queued_s,
        )
        return decision

    def knows(self, request_id: str) -> bool:
        """Whether the request has a worker or waits for one."""
        return request_id in self._waiting or request_id in self.scheduler.sequences

    def look(self, routing: RoutingRequest) -> RoutingDecision:
        """What decide() would choose now, without waiting and without consequences. Raises NoInstancesError."""
        return self.scheduler.look(routing, _now_s())

    def eligible(
        self, instances: Iterable[int], dp_rank: int | None, *, pinned: bool
    ) -> Callable[[WorkerId], bool] | None:
        """Which workers these are, as a RoutingRequest says it.

        Where they are all that there are, and not `pinned`, those that come while the request waits are as good.
        """
        allowed = frozenset(instances)
        if dp_rank is None and not pinned and allowed >= self._instances.keys():
            return None
        return lambda worker: worker.instance_id in allowed and dp_rank in (None, worker.dp_rank)

    def first_token(self, request_id: str) -> None:
        """The request's worker has begun to answer."""
        self.scheduler.first_token(request_id, _now_s())
        if self._sync is not None:
            self._sync.publish(PrefillDone(request_id))
        self._admit()

    def output(self, request_id: str, tokens: int) -> None:
        """The answer has grown; need not be told of each token."""
        self.scheduler.output(request_id, tokens, _now_s())

    def free(self, request_id: str) -> None:
        """The request has ended; one that still waits for its worker gets RequestCancelledError."""
        if (future := self._waiting.get(request_id)) is not None:
            _fail(future, RequestCancelledError("the request was freed before it had a worker"))
        self.scheduler.free(request_id)
        if self._sync is not None:
            self._sync.publish(SequenceFreed(request_id))
        self._admit()

    def worker_figures(self) -> list[WorkerFigures]:
        return [
            WorkerFigures(
                instance_id=worker.instance_id,
                dp_rank=worker.dp_rank,
                prefill_tokens=activity.prefill_tokens,
                blocks=activity.blocks,
                foreign_requests=activity.foreign_requests,
                foreign_prefill_tokens=activity.foreign_prefill_tokens,
                foreign_blocks=activity.foreign_blocks,
            )
            for worker, activity in self.scheduler.activities()
        ]

    def index_figures(self) -> IndexFigures:
        tree, subscriber = self.scheduler.tree, self._subscriber
        return IndexFigures(
            blocks=len(tree),
            believed_blocks=self.scheduler.believed_blocks(_now_s()),
            pruned=tree.pruned,
            events=self.indexer.events,
            malformed_events=self.indexer.malformed,
            dumps=self.indexer.dumps,
            gaps=subscriber.gaps if subscriber is not None else 0,
            recoveries=subscriber.recoveries if subscriber is not None else 0,
            broadcast_feeds=subscriber.broadcast_feeds if subscriber is not None else 0,
            queued_requests=self.scheduler.queued,
        )

    def _serves(self, instance_id: int) -> bool:
        return instance_id in self._instances

    def _has_feed(self, instance_id: int) -> bool:
        return self._subscriber is not None and self._subscriber.has_feed(instance_id)

    async def _admitted(self, request_id: str, context: Context) -> RoutingDecision:
        """Waits for the request's turn in the queue."""
        future: asyncio.Future[RoutingDecision] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        unfollow = context.on_stop(lambda _: _fail(future, RequestCancelledError("the request was cancelled")))
        try:
            async with in_time(context):
                await future
            return future.result()
        except BaseException:
            self.free(request_id)
            raise
        finally:
            unfollow()
            del self._waiting[request_id]

    def _admit(self) -> None:
        """Lets those go who need not wait any longer."""
        if not self.scheduler.queued:
            return
        for admitted in self.scheduler.take_admitted(_now_s()):
            future = self._waiting.get(admitted.request_id)
            if future is None or future.done():
                self.scheduler.free(admitted.request_id)
            elif admitted.decision is None:
                _fail(future, NoInstancesError("no worker can take this request any more"))
            else:
                self._publish_added(admitted.request_id)  # at once: it may be freed before its waiter's turn comes
                future.set_result(admitted.decision)

    def _publish_added(self, request_id: str) -> None:
        if self._sync is not None:
            self._sync.publish_added(request_id)

    async def _sweep(self) -> None:
        """Ends what nobody has ended, such as the requests of a client of `decide` that is gone."""
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            stale = self.scheduler.sweep(_now_s())
            if stale:
                logger.warning("%d requests have given no sign for long and no longer count as load", len(stale))
                self._admit()

    def _on_ask(self, told: Collection[int]) -> None:
        self.scheduler.expect_loads(self._instances.keys() - told)
        self.indexer.tree.clear_portion()  # even if no worker's events come any more
        self._admit()

    def _on_told(self, instance_id: int, loads: list[WorkerLoad]) -> None:
        self._on_load(instance_id, loads)
        self.scheduler.expect_loads([instance_id])  # what it tells next is how busy it is later

    def _on_load(self, instance_id: int, loads: list[WorkerLoad]) -> None:
        for load in loads:
            lost = self.scheduler.on_load(WorkerId(instance_id, load.dp_rank), load, _now_s())
            if lost:
                logger.warning(
                    "instance %x, rank %d, has been idle: %d requests that it was given no longer count as load",
                    instance_id,
                    load.dp_rank,
                    len(lost),
                )
        self._admit()


def _now_s() -> float:
    return time.monotonic()


def _fail(future: asyncio.Future[RoutingDecision], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
