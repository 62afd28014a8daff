"""The index follows live workers over a request plane, through everything that happens to them and to the router."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from dynamo.errors import OverloadedError
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import AllBlocksCleared, KvEvent, Tier
from dynamo.router.publisher import KvEventFeed
from dynamo.runtime.codec import encode_payload
from dynamo.runtime.event_feed import DumpEnd, DumpPart, FeedCursor, FeedEvent, Resumed
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted
from dynamo.tokens import hash_array

from .feed_cluster import BEAT_S, GENERATE, KV_EVENTS, Cluster, Router, Worker, batch, break_connections, contents
from .feed_world import removed, stored
from .planes import ALL, DIRECT, planes

of_streams = pytest.mark.parametrize("cluster", DIRECT, indirect=True)  # by which no feed is broadcast


@pytest.fixture(params=ALL)
async def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster]:
    monkeypatch.setattr("dynamo.runtime.feed_broadcast.BEAT_S", BEAT_S)
    async with planes(request.param, tmp_path) as config:
        cluster = Cluster(config)
        yield cluster
        await within(asyncio.gather(*(runtime.close(graceful=False) for runtime in cluster.runtimes)))


@pytest.fixture
async def router(cluster: Cluster) -> AsyncIterator[Router]:
    router = await cluster.router()
    yield router
    await router.subscriber.close()


async def test_workers_that_come_before_and_after_the_router(cluster: Cluster) -> None:
    early = await cluster.worker()
    early.feed.publish(batch(stored(1, 2, 3), dp_rank=1))
    router = await cluster.router()
    late = await cluster.worker()
    late.feed.publish(batch(stored(1), stored(7, tier=Tier.HOST)))
    await eventually(lambda: router.knows(early) and router.knows(late))
    early.feed.publish(batch(removed(3), stored(4), dp_rank=1))
    late.feed.publish(batch(AllBlocksCleared()))
    await eventually(lambda: router.knows(early) and router.knows(late))
    assert router.indexer.tree.find_matches(hash_array([1, 2])).scores == {WorkerId(early.id, 1): 2}
    assert (router.indexer.dumps, router.subscriber.gaps, router.subscriber.disconnects) == (2, 0, 0)
    await router.subscriber.close()


async def test_worker_without_blocks_has_a_feed_too(cluster: Cluster, router: Router) -> None:
    worker = await cluster.worker()
    assert not router.subscriber.has_feed(worker.id)
    await eventually(lambda: router.subscriber.has_feed(worker.id))
    assert not router.subscriber.has_feed(17)


@pytest.mark.parametrize("graceful", [True, False])
async def test_worker_that_goes_is_forgotten(cluster: Cluster, router: Router, graceful: bool) -> None:
    gone, stays = await cluster.worker(), await cluster.worker()
    for worker in (gone, stays):
        worker.feed.publish(batch(stored(1, 2)))
    await eventually(lambda: router.knows(gone) and router.knows(stays))
    await within(gone.runtime.close(graceful=graceful))
    await eventually(lambda: not contents(router.indexer, gone.id))
    assert not router.subscriber.has_feed(gone.id)
    assert router.knows(stays)
    assert router.indexer.tree.workers() == [WorkerId(stays.id)]


@pytest.mark.parametrize("early", [True, False])
async def test_worker_that_no_longer_knows_what_it_holds(cluster: Cluster, router: Router, early: bool) -> None:
    runtime, feed = cluster.runtime(), KvEventFeed()
    if early:  # before anybody could ask
        feed.publish(batch(stored(1, 2)))
        feed.close()
        await feed.start(runtime.endpoint(GENERATE))
    else:
        await feed.start(runtime.endpoint(GENERATE))
        feed.publish(batch(stored(1, 2)))
        await eventually(lambda: router.knows(Worker(runtime, feed)))
        feed.close()
        feed.close()
    await eventually(lambda: not runtime._announced)
    events = await router.runtime.endpoint(KV_EVENTS).client()
    await eventually(lambda: not events.instance_ids())
    await eventually(lambda: not contents(router.indexer, runtime.instance_id))
    await eventually(lambda: not router.subscriber.has_feed(runtime.instance_id))
    feed.publish(batch(stored(3)))  # which harms nobody


async def test_worker_that_goes_on_elsewhere(cluster: Cluster, router: Router) -> None:
    """What it holds is known there by a dump, with what has happened meanwhile; and so it is when it comes back."""
    worker = await cluster.worker()
    worker.feed.publish(batch(stored(1, 2)))
    await eventually(lambda: router.knows(worker))
    for component, elsewhere, block in (("backend", "test.prefill.generate", 3), ("prefill", GENERATE, 5)):
        worker.feed.stop()
        await within(worker.runtime.leave("test", component, 30.0))
        await eventually(lambda: not contents(router.indexer, worker.id))
        worker.feed.publish(batch(stored(block)))
        await worker.feed.start(worker.runtime.endpoint(elsewhere))
    worker.feed.publish(batch(stored(6)))
    await eventually(lambda: router.knows(worker) and router.subscriber.has_feed(worker.id))
    assert len(contents(router.indexer, worker.id)) == 5


async def test_instances_of_other_models_are_not_followed(cluster: Cluster, router: Router) -> None:
    ours, theirs = await cluster.worker(), await cluster.worker()
    for worker in (ours, theirs):
        worker.feed.publish(batch(stored(1, 2)))
    await eventually(lambda: router.knows(ours) and router.knows(theirs))
    router.subscriber.follow_only([ours.id])
    assert not contents(router.indexer, theirs.id)
    assert not router.subscriber.has_feed(theirs.id)
    later = await cluster.worker()
    later.feed.publish(batch(stored(3)))
    ours.feed.publish(batch(stored(4)))
    await eventually(lambda: router.knows(ours))
    router.subscriber.follow_only([ours.id, later.id])
    await eventually(lambda: router.knows(later))
    assert not contents(router.indexer, theirs.id)


@of_streams
async def test_lost_connection_costs_no_dump(cluster: Cluster, router: Router) -> None:
    worker = await cluster.worker()
    worker.feed.publish(batch(stored(1)))
    await eventually(lambda: router.knows(worker))
    assert await break_connections(worker) == 1
    worker.feed.publish(batch(stored(2)))
    await eventually(lambda: router.knows(worker) and router.subscriber.has_feed(worker.id))
    assert (router.subscriber.disconnects, router.subscriber.recoveries) == (1, 1)
    assert router.indexer.dumps == 1


@of_streams
async def test_worker_that_has_nothing_to_say_is_followed_again(cluster: Cluster, router: Router) -> None:
    worker = await cluster.worker()
    await eventually(lambda: router.subscriber.has_feed(worker.id))
    assert await break_connections(worker) == 1
    await eventually(lambda: router.subscriber.recoveries == 1)
    assert router.subscriber.has_feed(worker.id)
    assert router.indexer.dumps == 1


async def test_nothing_is_right_again_before_the_worker_has_answered(cluster: Cluster, router: Router) -> None:
    answers: dict[int | None, list[Any]] = {None: [DumpEnd(0, 0), OverloadedError("later")], 0: []}
    feed = Scripted[Any, Any](lambda request: answers[request[0]], hang=True)
    worker = await cluster.raw_worker(feed)
    await eventually(lambda: feed.open == 1)  # the second time
    assert feed.requests == [[None, 0], [0, 0]]
    assert not router.subscriber.has_feed(worker)
    assert router.subscriber.recoveries == 0


async def test_dump_that_is_too_large(
    cluster: Cluster, router: Router, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked for ever more seldom, and said once."""
    monkeypatch.setattr(FeedCursor.__init__, "__kwdefaults__", {"dump_bytes_max": 3})
    worker = await cluster.worker()
    worker.feed.publish(batch(stored(1)))
    await eventually(lambda: router.subscriber.gaps > 2)
    assert caplog.text.count(f"the feed of instance {worker.id:x} is asked for once more: its dump is too large") == 1
    assert not router.subscriber.has_feed(worker.id)


def part(of: int, number: int, *blocks: int) -> DumpPart:
    return DumpPart(of, number, Raw(encode_payload(batch(stored(*blocks)))))


async def test_dump_begun_anew(cluster: Cluster, router: Router) -> None:
    """Nothing of the one that has no end is left over."""
    items = [part(5, 0, 1), part(5, 1, 2), part(6, 0, 3), DumpEnd(6, 1)]
    worker = await cluster.raw_worker(Scripted[Any, Any](lambda request: items, hang=True))
    await eventually(lambda: router.subscriber.has_feed(worker))
    assert contents(router.indexer, worker) == {(0, Tier.DEVICE, 3)}
    assert router.subscriber.gaps == 0


@pytest.mark.parametrize("end", [OverloadedError("later"), part(5, 2, 9), DumpEnd(5, 2)])
async def test_dump_that_breaks_off(cluster: Cluster, router: Router, end: Any) -> None:
    answers = iter([[part(5, 0, 1), end], [DumpEnd(7, 0)]])
    worker = await cluster.raw_worker(Scripted[Any, Any](lambda request: next(answers), hang=True))
    await eventually(lambda: router.subscriber.has_feed(worker))
    assert router.subscriber.gaps + router.subscriber.disconnects == 1
    assert len(router.indexer.tree) == 0


@pytest.mark.parametrize("by", ["forgetting", "closing"])
async def test_dump_whose_rest_nobody_waits_for(cluster: Cluster, router: Router, by: str) -> None:
    worker = await cluster.raw_worker(Scripted[Any, Any](lambda request: [part(5, 0, 1)], hang=True))
    await eventually(lambda: len(router.indexer.tree) == 1)
    if by == "closing":
        await within(router.subscriber.close())
    else:
        router.subscriber.follow_only([])
    assert not contents(router.indexer, worker)
    router.indexer.end_dump(worker)
    router.indexer.apply(worker, batch(stored(2)))
    assert contents(router.indexer, worker) == {(0, Tier.DEVICE, 2)}
    assert len(router.indexer.tree) == 1


async def test_no_turn_of_the_event_loop_has_more_than_one_part(
    cluster: Cluster, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many workers' dumps have arrived at once."""
    turn, turns_with_parts = 0, list[int]()
    real = router.indexer.add_part

    def count_turn() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(count_turn)

    def add_part(instance_id: int, payload: Raw) -> None:
        turns_with_parts.append(turn)
        real(instance_id, payload)

    monkeypatch.setattr(router.indexer, "add_part", add_part)
    loop = asyncio.get_running_loop()
    loop.call_soon(count_turn)
    items = [*(part(5, number, number) for number in range(20)), DumpEnd(5, 20)]
    for _ in range(3):
        await cluster.raw_worker(Scripted[Any, Any](lambda request: items, hang=True))
    await eventually(lambda: router.indexer.dumps == 3)
    assert len(turns_with_parts) == len(set(turns_with_parts)) == 60


@of_streams
async def test_dump_after_a_connection_lost_for_long(cluster: Cluster, router: Router) -> None:
    worker = await cluster.worker(events_max=2)
    worker.feed.publish(batch(stored(1)))
    await eventually(lambda: router.knows(worker))
    assert await break_connections(worker) == 1
    for block in range(10):  # without a wait: the router cannot be back before
        worker.feed.publish(batch(stored(block)))
    worker.feed.publish(batch(removed(1, 5)))
    await eventually(lambda: router.knows(worker))
    assert router.indexer.dumps == 2


async def test_gap(cluster: Cluster, router: Router, caplog: pytest.LogCaptureFixture) -> None:
    """No feed of ours has gaps; one that has is asked again for what is missing."""

    def script(request: Any) -> Any:
        return [Resumed(2), event(3), event(4)] if request == [2, 0] else [DumpEnd(0, 0), event(1), event(2), event(4)]

    def event(number: int) -> FeedEvent:
        return FeedEvent(number, Raw(encode_payload(batch(stored(number)))))

    feed = Scripted[Any, Any](script, hang=True)
    worker = await cluster.raw_worker(feed)
    await eventually(lambda: len(contents(router.indexer, worker)) == 4)
    assert feed.requests == [[None, 0], [2, 0]]
    assert feed.open == feed.closed_early == 1
    assert f"the feed of instance {worker:x} is asked for once more: events are missing" in caplog.text
    assert (router.subscriber.gaps, router.subscriber.recoveries, router.subscriber.disconnects) == (1, 1, 0)


@pytest.mark.parametrize("items", [["no item"], [[9, 9]], [[0, 1]], [[0, "1", b""]]])
async def test_feed_of_another_kind(cluster: Cluster, router: Router, items: list[Any]) -> None:
    """It is tried again, ever more seldom, and hurts nobody else."""
    feed = Scripted[Any, Any](lambda request: items, hang=True)
    stranger, worker = await cluster.raw_worker(feed), await cluster.worker()
    worker.feed.publish(batch(stored(1)))
    await eventually(lambda: router.subscriber.disconnects >= 3 and router.knows(worker))
    assert not router.subscriber.has_feed(stranger)
    assert not contents(router.indexer, stranger)


async def test_nonsense_in_an_event(cluster: Cluster, router: Router, caplog: pytest.LogCaptureFixture) -> None:
    """The feed goes on after it."""
    items = [FeedEvent(1, Raw(encode_payload("?"))), FeedEvent(2, Raw(encode_payload(batch(stored(1)))))]
    worker = await cluster.raw_worker(Scripted[Any, Any](lambda request: [DumpEnd(0, 0), *items], hang=True))
    await eventually(lambda: len(contents(router.indexer, worker)) == 1)
    assert router.indexer.malformed == 1
    assert f"instance {worker:x} " in caplog.text
    assert router.subscriber.has_feed(worker)


@of_streams
async def test_defect_in_the_index(cluster: Cluster, router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has done is uncertain, so all is read again."""
    worker = await cluster.worker()
    await eventually(lambda: router.subscriber.has_feed(worker.id))
    used = asyncio.Event()

    def defect(*_: object) -> None:
        used.set()
        raise TypeError

    with monkeypatch.context() as patch:
        patch.setattr(router.indexer.tree, "apply", defect)
        worker.feed.publish(batch(stored(1)))
        await within(used.wait())
    await eventually(lambda: router.knows(worker))
    assert router.subscriber.has_feed(worker.id)


async def test_router_that_starts_again(cluster: Cluster) -> None:
    worker = await cluster.worker(events_max=3)
    for number in range(3):
        router = await cluster.router()
        worker.feed.publish(batch(*[stored(number * 10 + block) for block in range(5)], removed(3)))
        await eventually(lambda: router.knows(worker))  # noqa: B023 - awaited at once
        await router.close()


async def test_closing_ends_the_subscriptions(cluster: Cluster) -> None:
    feed = Scripted[Any, Any](lambda request: [DumpEnd(0, 0)], hang=True)
    worker = await cluster.raw_worker(feed)
    router = await cluster.router()
    await eventually(lambda: router.subscriber.has_feed(worker))
    assert any(name.startswith("feed-") for name in task_names())
    await within(router.subscriber.close())
    await eventually(lambda: feed.open == 0)
    assert not router.subscriber.has_feed(worker)
    assert not any(name.startswith(("follow-", "kv-events-")) for name in task_names())
    await router.runtime.close()


def task_names() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks()}


async def test_everything_at_once(cluster: Cluster) -> None:
    """The property of test_indexer.py once more, over connections that are there."""
    rng = random.Random(3)
    workers = [await cluster.worker(events_max=4) for _ in range(3)]
    router = await cluster.router()

    def publish() -> None:
        worker = rng.choice(workers)
        hashes = rng.choices(range(50), k=5)
        events: list[KvEvent] = [stored(*hashes), stored(*hashes, tier=Tier.HOST), removed(*hashes)]
        worker.feed.publish(batch(rng.choice(events), dp_rank=rng.randrange(2)))

    async def disconnect() -> None:
        worker = rng.choice(workers)
        await eventually(lambda: router.subscriber.has_feed(worker.id))  # which it may say from before the last fault
        await break_connections(worker)

    async def restart_worker() -> None:
        place = rng.randrange(3)
        await within(workers[place].runtime.close(graceful=False))
        workers[place] = await cluster.worker(events_max=4)

    async def restart_router() -> None:
        nonlocal router
        await router.close()
        router = await cluster.router()

    faults: list[Callable[[], Any]] = [disconnect, disconnect, restart_worker, restart_router]
    for _ in range(12):
        for _ in range(rng.randrange(10)):
            publish()
        await rng.choice(faults)()
        publish()
    await eventually(lambda: all(router.knows(worker) for worker in workers))
    await eventually(
        lambda: {worker.instance_id for worker in router.indexer.tree.workers()} <= {w.id for w in workers}
    )
    await router.close()
