"""Two ends of the event plane and a real broker between them, which comes and goes."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.event_plane.nats import OUTBOX_BYTES_MAX, NatsPlane, subject
from dynamo.runtime.instance import EndpointId
from dynamo.testing import eventually, within
from dynamo.testing.nats_server import NatsServer

EVENTS = EndpointId("test", "backend", "events")
MORE = EndpointId("test", "backend", "more")
BACKOFF_S = 0.02
INTERVAL_S = 0.02
Heard = list[tuple[int, bytes]]


@asynccontextmanager
async def plane(url: str) -> AsyncIterator[NatsPlane]:
    made = NatsPlane(url, backoff_min_s=BACKOFF_S)
    try:
        yield made
    finally:
        await within(made.close())


@pytest.fixture
async def sender(broker: NatsServer) -> AsyncIterator[NatsPlane]:
    async with plane(broker.url) as made:
        made.publish(EVENTS, 0, b"which begins it")
        await eventually(lambda: made.connected)
        yield made


@pytest.fixture
async def hearer(broker: NatsServer) -> AsyncIterator[NatsPlane]:
    async with plane(broker.url) as made:
        yield made


class Ear:
    """A subscription and what was heard."""

    def __init__(self, at: NatsPlane, endpoint: EndpointId = EVENTS) -> None:
        self.heard: Heard = []
        self.lost = 0
        self.part = at.subscribe(endpoint, lambda instance_id, said: self.heard.append((instance_id, said)), self._lose)

    def _lose(self) -> None:
        self.lost += 1

    async def hears(self, *said: tuple[int, bytes]) -> None:
        await eventually(lambda: self.heard[-len(said) :] == list(said))


async def until_heard(sender: NatsPlane, *ears: Ear) -> None:
    """Speaks until all hear it: a subscription takes its time."""
    probe = sender.repeat(EVENTS, 17, lambda: b"probe", INTERVAL_S)
    for ear in ears:
        await eventually(lambda: bool(ear.heard))  # noqa: B023 - awaited at once
    probe.close()
    sender.publish(EVENTS, 17, b"begin")
    for ear in ears:
        await ear.hears((17, b"begin"))
        ear.heard.clear()


async def test_all_hear_it_in_order(sender: NatsPlane, hearer: NatsPlane) -> None:
    ears = [Ear(hearer), Ear(hearer), Ear(sender)]
    await until_heard(sender, *ears)
    said = [(instance_id, b"%d" % number) for number in range(300) for instance_id in (1, 0xABCDEF0123456)]
    for instance_id, payload in said:
        sender.publish(EVENTS, instance_id, payload)
    for ear in ears:
        await ear.hears(*said)
        assert ear.heard == said
        assert ear.lost == 0


async def test_only_what_was_subscribed_to_is_heard(sender: NatsPlane, hearer: NatsPlane) -> None:
    events, more = Ear(hearer), Ear(hearer, MORE)
    await until_heard(sender, events)
    sender.publish(MORE, 2, b"more")
    sender.publish(EVENTS, 1, b"event")
    await events.hears((1, b"event"))
    await more.hears((2, b"more"))
    assert (len(events.heard), len(more.heard)) == (1, 1)


async def test_who_has_left_hears_nothing(sender: NatsPlane, hearer: NatsPlane) -> None:
    leaves, stays = Ear(hearer), Ear(hearer)
    await until_heard(sender, leaves, stays)
    leaves.part.close()
    leaves.part.close()
    sender.publish(EVENTS, 1, b"event")
    await stays.hears((1, b"event"))
    assert not leaves.heard
    await eventually(lambda: len(hearer._hearers) == 1)


async def test_large_messages(sender: NatsPlane, hearer: NatsPlane) -> None:
    """What the broker would not take is dropped, and does not end the connection."""
    ear = Ear(hearer)
    await until_heard(sender, ear)
    large, too_large = bytes(1 << 20), bytes((1 << 20) + 1)
    sender.publish(EVENTS, 1, large)
    sender.publish(EVENTS, 2, too_large)
    sender.publish(EVENTS, 3, b"")
    await ear.hears((1, large), (3, b""))
    assert sender.dropped == 2  # with the one that began it
    assert sender.connected


async def test_a_burst_that_fits_arrives(sender: NatsPlane, hearer: NatsPlane) -> None:
    ear = Ear(hearer)
    await until_heard(sender, ear)
    before = sender.dropped
    size_bytes, count = 100_000, 60
    for number in range(count):
        sender.publish(EVENTS, number, bytes(size_bytes))
    await eventually(lambda: len(ear.heard) == count)
    assert sender.dropped == before


async def test_what_waits_is_bounded(sender: NatsPlane) -> None:
    before = sender.dropped
    for _ in range(20):
        sender.publish(EVENTS, 1, bytes(1_000_000))
    assert sender._outbox_bytes <= OUTBOX_BYTES_MAX
    assert sender.dropped - before == 12
    await eventually(lambda: not sender._outbox)
    assert sender._outbox_bytes == 0


async def test_an_error_of_who_hears_is_logged(
    sender: NatsPlane, hearer: NatsPlane, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(instance_id: int, said: bytes) -> None:
        raise ValueError("cannot be")

    hearer.subscribe(EVENTS, fail, lambda: None)
    ear = Ear(hearer)
    await until_heard(sender, ear)
    assert "could not be used" in caplog.text
    assert "cannot be" in caplog.text


async def test_messages_of_strangers(sender: NatsPlane, hearer: NatsPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear(hearer)
    await until_heard(sender, ear)
    sender._outbox.append((subject(EVENTS, "no-number"), b"x"))
    sender.publish(EVENTS, 1, b"event")
    await ear.hears((1, b"event"))
    assert len(ear.heard) == 1


async def test_what_is_said_again_and_again(sender: NatsPlane, hearer: NatsPlane) -> None:
    ear = Ear(hearer)
    numbers = itertools.count()
    part = sender.repeat(EVENTS, 1, lambda: b"%d" % next(numbers), INTERVAL_S)
    await eventually(lambda: len(ear.heard) > 3)
    said = [int(payload) for _, payload in ear.heard]
    assert said == list(range(said[0], said[0] + len(said)))
    part.close()
    sender.publish(EVENTS, 2, b"last")
    await ear.hears((2, b"last"))


async def test_broker_that_is_restarted(
    broker: NatsServer, sender: NatsPlane, hearer: NatsPlane, caplog: pytest.LogCaptureFixture
) -> None:
    """Both are back without being told; what was said meanwhile is lost, and not kept."""
    ear = Ear(hearer)
    await until_heard(sender, ear)
    for times in range(1, 3):
        await broker.kill()
        await eventually(lambda: not sender.connected and not hearer.connected)
        assert ear.lost == times
        before = sender.dropped
        sender.publish(EVENTS, 1, b"lost")
        assert sender.dropped == before + 1
        assert not sender._outbox
        await broker.start()
        await until_heard(sender, ear)
        assert (1, b"lost") not in ear.heard
        assert caplog.text.count("what it would carry goes directly") == 2 * times


async def test_broker_that_comes_later(broker: NatsServer, hearer: NatsPlane, caplog: pytest.LogCaptureFixture) -> None:
    await broker.kill()
    ear = Ear(hearer)
    async with plane(broker.url) as sender:
        part = sender.repeat(EVENTS, 1, lambda: b"here", INTERVAL_S)
        await eventually(lambda: caplog.text.count("what it would carry goes directly") == 2)
        assert not ear.heard
        await broker.start()
        await ear.hears((1, b"here"))
        part.close()
    assert caplog.text.count("what it would carry goes directly") == 2  # once each
    assert ear.lost == 0


async def test_broker_that_hangs(broker: NatsServer, sender: NatsPlane, hearer: NatsPlane) -> None:
    """Nothing waits for it without a bound, and it is given up."""
    ear = Ear(hearer)
    await until_heard(sender, ear)
    broker.pause()
    while sender.connected:
        sender.publish(EVENTS, 1, bytes(1_000_000))
        assert sender._outbox_bytes <= OUTBOX_BYTES_MAX
        await asyncio.sleep(INTERVAL_S)
    assert not sender._outbox
    await eventually(lambda: ear.lost == 1)
    broker.go_on()
    ear.heard.clear()
    await until_heard(sender, ear)


async def test_closing_while_the_broker_hangs(broker: NatsServer) -> None:
    async with plane(broker.url) as sender:
        sender.publish(EVENTS, 1, b"")
        await eventually(lambda: sender.connected)
        broker.pause()
        for _ in range(8):
            sender.publish(EVENTS, 1, bytes(1_000_000))
    assert not [task for task in asyncio.all_tasks() if "nats" in task.get_name()]


async def test_who_leaves_while_there_is_no_broker_is_forgotten(broker: NatsServer, hearer: NatsPlane) -> None:
    await broker.kill()
    ears = [Ear(hearer) for _ in range(3)]
    for ear in ears:
        ear.part.close()
    assert not hearer._hearers


async def test_siblings_share_a_connection(broker: NatsServer) -> None:
    config = RuntimeConfig(discovery_backend="mem", request_plane="inproc", event_plane="nats", nats_server=broker.url)
    runtime = DistributedRuntime(config=config)
    sibling = runtime.sibling()
    plane = runtime.event_plane
    assert isinstance(plane, NatsPlane)
    assert sibling.event_plane is plane
    ear = Ear(plane)
    sibling.event_plane.repeat(EVENTS, sibling.instance_id, lambda: b"sibling", INTERVAL_S)
    await ear.hears((sibling.instance_id, b"sibling"))
    await within(sibling.close())
    ear.heard.clear()
    await ear.hears((sibling.instance_id, b"sibling"))
    await within(runtime.close())
    assert not plane.connected


async def test_closing_before_and_after(broker: NatsServer) -> None:
    unused = NatsPlane(broker.url)
    await unused.close()
    unused.publish(EVENTS, 1, b"")
    unused.repeat(EVENTS, 1, lambda: b"", INTERVAL_S)
    unused.subscribe(EVENTS, lambda *_: None, lambda: None)
    assert unused._task is None
    await unused.close()
