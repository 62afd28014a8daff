"""Routers of the same workers see each other's load, whatever becomes of them."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from dynamo.errors import RequestCancelledError
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.model_card import RuntimeLimits
from dynamo.protocols.replica_sync import PrefillDone, SequenceAdded, SequenceFreed
from dynamo.router import replica_sync
from dynamo.router.config import KvRouterConfig
from dynamo.router.kv_placer import KvPlacer
from dynamo.router.radix_tree import RadixTree
from dynamo.router.replica_sync import ReplicaSync, sync_endpoint
from dynamo.router.routing import RoutingDecision, RoutingRequest
from dynamo.router.scheduler import KvScheduler
from dynamo.runtime import Context, DistributedRuntime, RuntimeConfig
from dynamo.runtime.codec import encode_payload
from dynamo.runtime.distributed import SharedParts
from dynamo.runtime.event_feed import DumpEnd, DumpPart, FeedEvent
from dynamo.runtime.instance import EndpointId
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted
from dynamo.tokens import hash_array, token_array

from .planes import ALL, planes

WORKERS = EndpointId("test", "backend", "generate")
WORKER, OTHER = WorkerId(1), WorkerId(2, 3)
BLOCK_SIZE = 4
IDLE = (0, 0, 0)

Load = tuple[int, int, int]  # requests, tokens to prefill, blocks


def make_scheduler() -> KvScheduler:
    return KvScheduler(KvRouterConfig(), BLOCK_SIZE, random.Random(0), RadixTree(), lambda _: False)


@dataclass(slots=True)
class Router:
    """What a KvPlacer has to do with it."""

    runtime: DistributedRuntime
    scheduler: KvScheduler
    sync: ReplicaSync
    changes: list[tuple[Load, Load]]  # what its load on WORKER and OTHER was after each

    def send(
        self,
        request_id: str,
        worker: WorkerId = WORKER,
        *,
        tokens: int = 10,
        prefill_tokens: int = 6,
        hashes: Iterable[int] = (),
    ) -> None:
        self.scheduler.sequences.add(
            request_id,
            worker,
            prompt_tokens=tokens,
            prefill_tokens=prefill_tokens,
            now_s=0,
            hashes=hash_array(hashes),
        )
        self.sync.publish_added(request_id)

    def first_token(self, request_id: str) -> None:
        self.scheduler.first_token(request_id, 0)
        self.sync.publish(PrefillDone(request_id))

    def free(self, request_id: str) -> None:
        self.scheduler.free(request_id)
        self.sync.publish(SequenceFreed(request_id))

    def load(self, worker: WorkerId = WORKER) -> Load:
        activity = self.scheduler.sequences.watch(worker)
        return activity.requests, activity.prefill_tokens, activity.blocks

    def uses(self, *hashes: int) -> dict[WorkerId, int]:
        """How many of these consecutive blocks requests use on each worker."""
        return self.scheduler.sequences.find_active(hash_array(hashes)).scores


@dataclass(slots=True)
class Cluster:
    config: RuntimeConfig
    shared: SharedParts = field(default_factory=SharedParts)
    runtimes: list[DistributedRuntime] = field(default_factory=list)
    syncs: list[ReplicaSync] = field(default_factory=list)

    def runtime(self) -> DistributedRuntime:
        self.runtimes.append(DistributedRuntime(config=self.config, shared=self.shared))
        return self.runtimes[-1]

    def router(self, model: str = "m") -> Router:
        def on_change() -> None:
            router.changes.append((router.load(), router.load(OTHER)))

        runtime, scheduler = self.runtime(), make_scheduler()
        sync = ReplicaSync(runtime, WORKERS, model, scheduler, lambda: 0.0, on_change)
        self.syncs.append(sync)
        router = Router(runtime, scheduler, sync, [])
        return router

    async def raw_router(self, *answers: list[Any]) -> Scripted[Any, Any]:
        """One that says whatever the test wants, from one subscription to the next, and again and again in the end."""
        left = list(answers)
        feed = Scripted[Any, Any](lambda request: left.pop(0) if len(left) > 1 else left[0], hang=True)
        await self.runtime().endpoint(str(sync_endpoint(WORKERS, "m"))).start(feed)
        return feed


@pytest.fixture(params=ALL)
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with planes(request.param, tmp_path) as config:
        cluster = Cluster(config)
        yield cluster
        await within(asyncio.gather(*(sync.close() for sync in cluster.syncs)))
        await within(asyncio.gather(*(runtime.close(graceful=False) for runtime in cluster.runtimes)))


async def test_each_sees_what_the_other_sends(cluster: Cluster) -> None:
    one, two = cluster.router(), cluster.router()
    one.send("a")
    two.send("a", tokens=4, prefill_tokens=4)  # ids are each router's own
    for router in (one, two):
        await eventually(lambda: router.load() == (2, 10, 4))  # noqa: B023 - awaited at once
    one.first_token("a")
    await eventually(lambda: two.load() == one.load() == (2, 4, 4))
    one.free("a")
    await eventually(lambda: two.load() == one.load() == (1, 4, 1))
    two.free("a")
    await eventually(lambda: two.load() == one.load() == IDLE)
    assert one.changes
    assert two.changes


async def test_ranks_and_workers_that_are_not_known_yet(cluster: Cluster) -> None:
    one, two = cluster.router(), cluster.router()
    one.send("a", OTHER)
    await eventually(lambda: two.load(OTHER) == (1, 6, 3))
    assert two.load() == two.load(WorkerId(2)) == IDLE


async def test_who_joins_late_gets_all_of_it(cluster: Cluster) -> None:
    one = cluster.router()
    one.send("ended")
    one.free("ended")
    for number in range(1500):  # more than a part of a dump holds
        one.send(f"r{number}")
    one.first_token("r7")
    one.scheduler.output("r7", 5, 0)  # which makes its blocks four
    late = cluster.router()
    await eventually(lambda: late.load() == one.load() == (1500, 1499 * 6, 1499 * 3 + 4))
    one.free("r7")
    await eventually(lambda: late.load() == one.load() == (1499, 1499 * 6, 1499 * 3))


async def test_blocks_that_requests_of_several_routers_share_count_once(cluster: Cluster) -> None:
    one, two = cluster.router(), cluster.router()
    one.send("a", hashes=[1, 2])
    two.send("a", hashes=[1, 3])
    for router in (one, two):
        await eventually(lambda: router.load() == (2, 12, 5))  # noqa: B023 - awaited at once
        assert router.uses(1, 2) == router.uses(1, 3) == {WORKER: 2}
    one.free("a")
    await eventually(lambda: two.load() == one.load() == (1, 6, 3))
    assert one.uses(1, 2) == two.uses(1, 2) == {WORKER: 1}
    late = cluster.router()
    await eventually(lambda: late.load() == (1, 6, 3))
    assert late.uses(1, 3) == {WORKER: 2}


async def test_dump_in_parts(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many requests, and so many bytes, unless one alone has more."""
    monkeypatch.setattr(replica_sync, "_PART_SEQUENCES", 3)
    monkeypatch.setattr(replica_sync, "_PART_BYTES", 32)
    one = cluster.router()
    for name, blocks in [("a", 2), ("b", 2), ("c", 1), ("d", 9), ("e", 0), ("f", 0), ("g", 0), ("h", 0)]:
        one.send(name, tokens=40, hashes=range(blocks))
    parts = [[added.request_id for added in part] for part in one.sync._dump()]
    assert parts == [["a", "b"], ["c"], ["d"], ["e", "f", "g"], ["h"]]
    late = cluster.router()
    await eventually(lambda: late.load() == one.load())
    assert late.uses(*range(10)) == {WORKER: 9}


async def test_dump_after_a_gap(cluster: Cluster) -> None:
    """No request counts twice, or for a moment not at all; those it does not name have ended."""

    def part(number: int, *added: SequenceAdded) -> DumpPart:
        return DumpPart(5, number, Raw(encode_payload(list(added))))

    former = part(
        0, SequenceAdded("a", WORKER, 8, 4), SequenceAdded("b", WORKER, 8, 8), SequenceAdded("c", OTHER, 8, 8)
    )
    b, d = SequenceAdded("b", WORKER, 8, 0), SequenceAdded("d", WORKER, 4, 4)
    await cluster.raw_router(
        [former, DumpEnd(5, 1), event(9, PrefillDone("a"))],
        [part(0, b), DumpEnd(5, 2)],
        [part(0, b), part(1, d), DumpEnd(5, 2)],
    )
    router = cluster.router()
    await eventually(lambda: len(router.changes) == 6)
    assert router.changes == [
        *[((2, 12, 4), (1, 8, 2))] * 2,
        *[((2, 4, 4), (1, 8, 2))] * 2,  # between the two of them the dump has broken off
        ((3, 8, 5), (1, 8, 2)),
        ((2, 4, 3), IDLE),
    ]


async def test_nobody_passes_on_what_it_has_heard(cluster: Cluster) -> None:
    one, two = cluster.router(), cluster.router()
    one.send("a")
    await eventually(lambda: two.load() == (1, 6, 3))
    three = cluster.router()
    two.send("b")
    await eventually(lambda: all(router.load() == (2, 12, 6) for router in (one, two, three)))
    one.free("a")
    await eventually(lambda: all(router.load() == (1, 6, 3) for router in (one, two, three)))


@pytest.mark.parametrize("end", ["crash", "shutdown", "close"])
async def test_one_that_goes_takes_its_requests_along(cluster: Cluster, end: str) -> None:
    one, two = cluster.router(), cluster.router()
    one.send("a")
    two.send("b")
    await eventually(lambda: one.load() == two.load() == (2, 12, 6))
    await within(one.sync.close() if end == "close" else one.runtime.close(graceful=end == "shutdown"))
    await eventually(lambda: two.load() == (1, 6, 3))
    back = cluster.router()
    await eventually(lambda: back.load() == (1, 6, 3))
    back.send("c")
    await eventually(lambda: two.load() == (2, 12, 6))


async def test_models_of_the_same_workers_are_apart(cluster: Cluster) -> None:
    one, two, other = cluster.router(), cluster.router(), cluster.router("Org/m é")
    one.send("a")
    other.send("b")
    await eventually(lambda: two.load() == (1, 6, 3))
    await within(asyncio.gather(other.sync.close(), other.runtime.close()))
    assert two.load() == (1, 6, 3)


def event(number: int, payload: Any) -> FeedEvent:
    return FeedEvent(number, Raw(encode_payload(payload)))


@pytest.mark.parametrize(
    "nonsense",
    [
        "?",
        [0, "a"],
        [9, "a"],
        [1, 5],
        SequenceAdded("a", WORKER, -1, 6),
        SequenceAdded("a", WORKER, 10, -6),
        SequenceAdded("a", WORKER, 10, 6, b"1234567"),
        SequenceAdded("a", WORKER, 11, 6, b"12345678" * 3),
        [0, "a", [1, 0], 10, 6, "12345678"],
    ],
)
async def test_nonsense_from_another(cluster: Cluster, nonsense: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is left out, by name, once, and what is right counts."""
    good = SequenceAdded("b", WORKER, 10, 6)
    dump = DumpPart(0, 0, Raw(encode_payload([nonsense])))
    rest = DumpPart(0, 1, Raw(encode_payload([SequenceAdded("c", WORKER, 4, 4)])))
    events = event(1, nonsense), event(2, good), event(3, PrefillDone("?"))
    await cluster.raw_router([dump, rest, DumpEnd(0, 2), *events])
    one, two = cluster.router(), cluster.router()
    one.send("d")
    for router in (one, two):
        await eventually(lambda: router.load() == (3, 16, 7))  # noqa: B023 - awaited at once
    warning = f"router {cluster.runtimes[0].instance_id:x} says of its load what makes no sense"
    assert caplog.text.count(warning) == len((one, two))


async def test_placers_share_their_load_and_their_queues_move(cluster: Cluster) -> None:
    config = KvRouterConfig(router_replica_sync=True, use_kv_events=False, router_queue_threshold=1)
    placers = []
    for _ in range(2):
        runtime = cluster.runtime()
        placers.append(KvPlacer(runtime, WORKERS, BLOCK_SIZE, config, "m"))
        placers[-1].set_instances({1: RuntimeLimits(max_num_batched_tokens=32)})
    one, two = placers
    prompt = token_array(range(40))
    await one.decide(RoutingRequest(request_id="first", token_ids=prompt), Context())
    await eventually(lambda: two.worker_figures() == one.worker_figures())
    waiting = asyncio.create_task(two.decide(RoutingRequest(request_id="second", token_ids=prompt), Context()))
    gives_up = asyncio.create_task(two.decide(RoutingRequest(request_id="third", token_ids=prompt), Context()))
    await eventually(lambda: two.scheduler.queued == 2)
    two.free("third")
    with pytest.raises(RequestCancelledError):
        await within(gives_up)
    one.first_token("first")
    assert (await within(waiting)).worker == WORKER
    for placer in placers:
        await eventually(lambda: len(placer.scheduler.sequences) == 2)  # noqa: B023 - awaited at once
        assert placer.worker_figures()[0].blocks == 10  # one prompt's: they have the same
    one.free("first")
    two.free("second")
    for placer in placers:
        await eventually(lambda: placer.worker_figures()[0].blocks == 0)  # noqa: B023 - awaited at once
    await within(asyncio.gather(*(placer.close() for placer in placers)))


async def test_burst_over_two_routers_stays_together_as_over_one(cluster: Cluster) -> None:
    """And what it has left in a worker's cache is known to both of them, though the worker says nothing."""
    config = KvRouterConfig(router_replica_sync=True, use_kv_events=False)
    workers = {number: RuntimeLimits() for number in range(1, 9)}
    one, two = placers = [KvPlacer(cluster.runtime(), WORKERS, BLOCK_SIZE, config, "m") for _ in range(2)]
    for placer in placers:
        placer.set_instances(workers)
    prefix = list(range(40))

    async def decide(number: int) -> RoutingDecision:
        prompt = token_array([*prefix, number, 1, 2, 3])
        decision = await placers[number % 2].decide(RoutingRequest(request_id=str(number), token_ids=prompt), Context())
        await eventually(lambda: all(len(placer.scheduler.sequences) == number + 1 for placer in placers))
        return decision

    decisions = [await decide(number) for number in range(4)]
    assert len({decision.worker for decision in decisions}) == 1
    assert [decision.overlap.total for decision in decisions] == [0, 10, 10, 10]
    busy = [figures for figures in two.worker_figures() if figures.blocks]
    assert busy == [figures for figures in one.worker_figures() if figures.blocks]
    assert [(figures.prefill_tokens, figures.blocks) for figures in busy] == [(44 + 3 * 4, 10 + 4)]
    one.first_token("0")
    for number in range(4):
        placers[number % 2].free(str(number))
    await eventually(lambda: all(len(placer.scheduler.sequences) == 0 for placer in placers))
    last = two.look(RoutingRequest(request_id="last", token_ids=token_array(prefix)))
    assert (last.worker, last.overlap.total) == (decisions[0].worker, 10)
    await within(asyncio.gather(one.close(), two.close()))


async def test_request_that_is_freed_the_moment_it_has_its_worker(cluster: Cluster) -> None:
    config = KvRouterConfig(router_replica_sync=True, use_kv_events=False, router_queue_threshold=1)
    one, two = (KvPlacer(cluster.runtime(), WORKERS, BLOCK_SIZE, config, "m") for _ in range(2))
    for placer in (one, two):
        placer.set_instances({1: RuntimeLimits(max_num_batched_tokens=32)})
    prompt = token_array(range(40))
    await one.decide(RoutingRequest(request_id="first", token_ids=prompt), Context())
    await eventually(lambda: two.worker_figures() == one.worker_figures())
    waiting = asyncio.create_task(one.decide(RoutingRequest(request_id="second", token_ids=prompt), Context()))
    await eventually(lambda: one.scheduler.queued == 1)
    one.free("first")
    one.free("second")  # before its waiter's turn
    await within(waiting)
    await one.decide(RoutingRequest(request_id="third", token_ids=prompt[:20]), Context())
    await eventually(lambda: one.worker_figures() == two.worker_figures())
    assert [figures.blocks for figures in two.worker_figures()] == [5]
    await within(asyncio.gather(one.close(), two.close()))


async def test_a_router_that_cannot_serve_its_feed_does_without(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = cluster.runtime()
    runtime.shutdown()
    sync = ReplicaSync(runtime, WORKERS, "m", make_scheduler(), lambda: 0.0, lambda: None)
    cluster.syncs.append(sync)
    await eventually(lambda: "this router's load is not shared" in caplog.text)
    sync.publish(SequenceFreed("a"))
