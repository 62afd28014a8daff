"""Feeds that a broker carries: what it loses is asked for, and when it is gone the workers are followed themselves."""

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from dynamo.protocols.kv_events import KvEvent, Tier
from dynamo.runtime import RuntimeConfig
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.feed_broadcast import Broadcast
from dynamo.runtime.instance import EndpointId
from dynamo.testing import eventually, within
from dynamo.testing.nats_server import NatsServer, nats_server

from .feed_cluster import BEAT_S, KV_EVENTS, Cluster, Router, Worker, batch, break_connections, contents
from .feed_world import removed, stored

EVENTS = EndpointId.parse(KV_EVENTS)
SILENCE_S = 10 * BEAT_S

_decode = payload_decoder(Broadcast)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as server:
        yield server


@pytest.fixture
async def cluster(broker: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr("dynamo.runtime.feed_broadcast.BEAT_S", BEAT_S)
    monkeypatch.setattr("dynamo.router.subscriber.SILENCE_S", SILENCE_S)
    monkeypatch.setattr("dynamo.runtime.event_plane.nats.BACKOFF_MAX_S", 0.2)
    config = RuntimeConfig(file_kv=str(tmp_path / "kv"), event_plane="nats", nats_server=broker.url)
    cluster = Cluster(config)
    yield cluster
    await within(asyncio.gather(*(runtime.close(graceful=False) for runtime in cluster.runtimes)))


@pytest.fixture
async def router(cluster: Cluster) -> AsyncIterator[Router]:
    router = await cluster.router()
    yield router
    await router.subscriber.close()


async def followed(router: Router, *workers: Worker) -> None:
    """Waits until the router follows the workers by the broker alone, and all that they hold is known."""
    await eventually(lambda: router.subscriber.broadcast_feeds == len(workers))
    await eventually(lambda: all(router.knows(worker) for worker in workers))


def streams_of(worker: Worker) -> int:
    """How many subscribers wait for its next event."""
    return len(worker.feed._feed._waiters)


def lose(worker: Worker, monkeypatch: pytest.MonkeyPatch, lost: Callable[[Broadcast], bool]) -> list[Broadcast]:
    """From now on the broker does not get these messages of a worker's; returns them as they come."""
    plane, seen = worker.runtime.event_plane, list[Broadcast]()
    real = plane.publish

    def publish(endpoint: EndpointId, instance_id: int, payload: bytes) -> None:
        message = _decode(payload)
        if lost(message):
            seen.append(message)
        else:
            real(endpoint, instance_id, payload)

    monkeypatch.setattr(plane, "publish", publish)
    return seen


async def test_one_stream_to_begin_with_and_none_later(cluster: Cluster) -> None:
    worker = await cluster.worker()
    worker.feed.publish(batch(stored(1, 2)))
    routers = [await cluster.router() for _ in range(3)]
    for router in routers:
        await followed(router, worker)
    await eventually(lambda: streams_of(worker) == 0)
    worker.feed.publish(batch(removed(1), stored(3, tier=Tier.HOST), dp_rank=1))
    for router in routers:
        await eventually(lambda: router.knows(worker))  # noqa: B023 - awaited at once
        assert router.subscriber.has_feed(worker.id)
        assert (router.indexer.dumps, router.subscriber.gaps, router.subscriber.disconnects) == (1, 0, 0)
        await router.close()
    assert streams_of(worker) == 0


async def test_connections_to_workers_do_not_matter(cluster: Cluster, router: Router) -> None:
    worker = await cluster.worker()
    await followed(router, worker)
    await break_connections(worker)
    worker.feed.publish(batch(stored(1)))
    await followed(router, worker)
    assert (router.subscriber.disconnects, router.subscriber.gaps) == (0, 0)


@pytest.mark.parametrize("more", [True, False])
async def test_message_that_is_lost(
    cluster: Cluster, router: Router, monkeypatch: pytest.MonkeyPatch, more: bool
) -> None:
    """The next one tells, and be it a beat: the worker is asked for what is missing and no more."""
    worker = await cluster.worker()
    worker.feed.publish(batch(stored(1)))
    await followed(router, worker)
    lost = lose(worker, monkeypatch, lambda message: bool(message.payloads) and not lost)
    worker.feed.publish(batch(stored(2)))
    await eventually(lambda: bool(lost))
    if more:
        worker.feed.publish(batch(stored(3)))
    await eventually(lambda: router.knows(worker))
    await followed(router, worker)
    assert (router.subscriber.gaps, router.subscriber.recoveries, router.subscriber.disconnects) == (1, 1, 0)
    assert router.indexer.dumps == 1


async def test_more_is_lost_than_the_worker_keeps(
    cluster: Cluster, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await cluster.worker(events_max=2)
    worker.feed.publish(batch(stored(1)))
    await followed(router, worker)
    lost = lose(worker, monkeypatch, lambda message: bool(message.payloads))
    for block in range(2, 10):
        worker.feed.publish(batch(stored(block)))
    worker.feed.publish(batch(removed(1)))
    await eventually(lambda: router.knows(worker))
    assert router.indexer.dumps == 2
    assert lost


async def test_slow_router(cluster: Cluster, router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come and could not be taken in time is lost, and asked for."""
    monkeypatch.setattr("dynamo.runtime.feed_broadcast._EVENTS_MAX", 1)
    monkeypatch.setattr("dynamo.runtime.event_plane.nats_connection._UNREAD_MESSAGES_MAX", 2)
    slow = await cluster.router()
    worker = await cluster.worker()
    await followed(slow, worker)
    for block in range(100):
        worker.feed.publish(batch(stored(block)))
    await eventually(lambda: slow.knows(worker))
    assert slow.subscriber.gaps > 0
    await followed(slow, worker)
    await slow.close()


async def test_event_that_no_message_holds(cluster: Cluster, router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nats.aio.client.Client.max_payload", 5000)
    worker = await cluster.worker()
    await followed(router, worker)
    worker.feed.publish(batch(stored(*range(1000))))
    worker.feed.publish(batch(stored(7, tier=Tier.HOST)))
    await eventually(lambda: router.knows(worker))
    await followed(router, worker)
    assert (router.subscriber.gaps, router.indexer.dumps) == (1, 1)


async def test_broker_that_dies_and_comes_back(cluster: Cluster, router: Router, broker: NatsServer) -> None:
    workers = [await cluster.worker() for _ in range(3)]
    await followed(router, *workers)
    for round_number in range(3):
        for worker in workers:
            worker.feed.publish(batch(stored(round_number)))
        await broker.kill()
        for worker in workers:
            worker.feed.publish(batch(stored(100 + round_number), removed(99 + round_number)))
        await eventually(lambda: all(router.knows(worker) for worker in workers))
        await eventually(lambda: all(streams_of(worker) == 1 for worker in workers))
        await broker.start()
        await followed(router, *workers)
    assert router.indexer.dumps == len(workers)


async def test_broker_that_is_not_there_at_first(
    cluster: Cluster, broker: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    await broker.kill()
    router, worker = await cluster.router(), await cluster.worker()
    worker.feed.publish(batch(stored(1)))
    await eventually(lambda: router.knows(worker) and router.subscriber.has_feed(worker.id))
    await eventually(lambda: caplog.text.count("what it would carry goes directly") == 2)  # the router, and the worker
    await broker.start()
    await followed(router, worker)
    assert caplog.text.count("what it would carry goes directly") == 2
    assert router.subscriber.gaps == 0
    await router.close()


@pytest.mark.alone
async def test_broker_that_hangs(cluster: Cluster, router: Router, broker: NatsServer) -> None:
    """Silence is enough, long before the connection is given up."""
    worker = await cluster.worker()
    await followed(router, worker)
    broker.pause()
    worker.feed.publish(batch(stored(1)))
    await eventually(lambda: router.knows(worker))
    assert router.runtime.event_plane.connected
    assert router.subscriber.disconnects == 1
    broker.go_on()
    await followed(router, worker)
    assert router.indexer.dumps == 1


async def test_worker_without_a_broker(cluster: Cluster, router: Router) -> None:
    """Is followed by its stream, beside one with."""
    own = dataclasses.replace(cluster.config, event_plane="direct")
    alone = await Cluster(own, cluster.shared, cluster.runtimes).worker()
    worker = await cluster.worker()
    await followed(router, worker)
    alone.feed.publish(batch(stored(1)))
    await eventually(lambda: router.knows(alone))
    assert streams_of(alone) == 1
    assert router.subscriber.has_feed(alone.id)


async def test_router_without_a_broker(cluster: Cluster) -> None:
    own = dataclasses.replace(cluster.config, event_plane="direct")
    router = await Cluster(own, cluster.shared, cluster.runtimes).router()
    worker = await cluster.worker()
    worker.feed.publish(batch(stored(1)))
    await eventually(lambda: router.knows(worker))
    assert streams_of(worker) == 1
    await router.close()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        encode_payload([1, 2]),
        encode_payload(Broadcast(7, 2, [Raw(encode_payload(batch(stored(9))))])),
        encode_payload(Broadcast(7, 1 << 62, [])),
    ],
)
async def test_what_strangers_say(cluster: Cluster, router: Router, message: bytes) -> None:
    """Nothing of it gets into the state."""
    worker = await cluster.worker()
    worker.feed.publish(batch(stored(1)))
    await followed(router, worker)
    heard = list[bytes]()
    ear = router.runtime.event_plane.subscribe(EVENTS, lambda _, said: heard.append(said), lambda: None)
    stranger = cluster.runtime().event_plane
    part = stranger.repeat(EVENTS, worker.id, lambda: message, BEAT_S)
    nobody = stranger.repeat(EVENTS, 17, lambda: message, BEAT_S)
    await eventually(lambda: heard.count(message) > 3)
    ear.close()
    worker.feed.publish(batch(stored(2)))
    await eventually(lambda: router.knows(worker))
    part.close()
    nobody.close()
    await followed(router, worker)


async def test_defect_in_the_index(cluster: Cluster, router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has done is uncertain, so all is read again."""
    worker = await cluster.worker()
    await followed(router, worker)
    real, calls = router.indexer.tree.apply, list[Any]()

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        monkeypatch.setattr(router.indexer.tree, "apply", real)
        raise ValueError("a defect")

    monkeypatch.setattr(router.indexer.tree, "apply", fail)
    worker.feed.publish(batch(stored(1)))
    await eventually(lambda: bool(calls) and router.knows(worker))
    assert router.indexer.dumps == 2
    await followed(router, worker)


async def test_closing(cluster: Cluster) -> None:
    router, worker = await cluster.router(), await cluster.worker()
    await followed(router, worker)
    await within(router.subscriber.close())
    assert not router.subscriber.has_feed(worker.id)
    worker.feed.publish(batch(stored(1)))
    other = await cluster.router()
    await followed(other, worker)
    assert not contents(router.indexer, worker.id)
    await other.close()


async def test_everything_at_once(cluster: Cluster, broker: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are lost, the broker, workers and routers are restarted: in the end all is equal."""
    rng = random.Random(5)
    routers = [await cluster.router() for _ in range(2)]
    workers = list[Worker]()
    alive = True

    async def start_worker() -> Worker:
        worker = await cluster.worker(events_max=4)
        lose(worker, monkeypatch, lambda _: rng.random() < 0.2)
        return worker

    def publish() -> None:
        hashes = rng.choices(range(50), k=5)
        events: list[KvEvent] = [stored(*hashes), stored(*hashes, tier=Tier.HOST), removed(*hashes)]
        rng.choice(workers).feed.publish(batch(rng.choice(events), dp_rank=rng.randrange(2)))

    async def restart_broker() -> None:
        nonlocal alive
        await (broker.kill() if alive else broker.start())
        alive = not alive

    async def restart_worker() -> None:
        place = rng.randrange(len(workers))
        await within(workers[place].runtime.close(graceful=False))
        workers[place] = await start_worker()

    async def restart_router() -> None:
        place = rng.randrange(len(routers))
        await routers[place].close()
        routers[place] = await cluster.router()

    async def settle() -> None:
        await eventually(lambda: all(router.knows(worker) for router in routers for worker in workers))

    workers += [await start_worker() for _ in range(3)]
    faults: list[Callable[[], Any]] = [settle, settle, restart_broker, restart_broker, restart_worker, restart_router]
    for _ in range(20):
        for _ in range(rng.randrange(10)):
            publish()
            await asyncio.sleep(0)
        await rng.choice(faults)()
        publish()
    await settle()
    for router in routers:
        await router.close()
