"""Calling instances that come, go, and fail."""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from dynamo.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    DrainingError,
    InvalidRequestError,
    NoInstancesError,
    ProtocolError,
    RequestCancelledError,
    RequestTooLargeError,
    UnreachableError,
)
from dynamo.runtime import Client, Context, DistributedRuntime, Instance
from dynamo.runtime.channels import Channels, Heartbeat
from dynamo.runtime.client import ReplyStream
from dynamo.runtime.codec import DEFAULT_MAX_FRAME_BYTES
from dynamo.runtime.discovery.memory import MemoryDiscovery, MemoryStore
from dynamo.runtime.instance import EndpointId
from dynamo.runtime.request_plane.base import Address, Channel
from dynamo.runtime.request_plane.call import Dispatcher, ServedCall
from dynamo.runtime.request_plane.listener import ConnectionListener
from dynamo.runtime.request_plane.reply import Reply
from dynamo.runtime.stage import Deliver
from dynamo.testing import eventually, within
from dynamo.testing.stages import reading

NewRuntime = Callable[[], DistributedRuntime]

PATH = "test.backend.generate"


async def serve(runtime: DistributedRuntime) -> int:
    """Serves an endpoint that answers with the instance's id, which it returns."""

    async def generate(request: Any) -> AsyncIterator[int]:
        yield runtime.instance_id

    await runtime.endpoint(PATH).start(generate)
    return runtime.instance_id


async def announce_dead(runtime: DistributedRuntime, instance_id: int) -> None:
    """Makes a discovery entry of an instance that nobody can reach."""
    instance = Instance(
        instance_id=instance_id,
        namespace="test",
        component="backend",
        endpoint="generate",
        address=Address(tcp_host="127.0.0.1", tcp_port=9, inproc="nobody", secret=str(instance_id)),
    )
    await runtime.register(instance.key, instance.encode())


async def follow(client: Client, instance_ids: list[int]) -> None:
    """Waits until the client knows exactly these."""
    while client.instance_ids() != sorted(instance_ids):
        await within(client.wait_for_change())


async def ask(client: Client, context: Context | None = None) -> int:
    """Who answers a call to the next instance in turn."""
    answer: int = await only(await client.generate(None, annotated=False, context=context))
    return answer


async def only(stream: AsyncIterator[Any]) -> Any:
    (item,) = [item async for item in stream]
    return item


async def test_turns(new_runtime: NewRuntime) -> None:
    ids = [await serve(new_runtime()) for _ in range(3)]
    client = await new_runtime().endpoint(PATH).client()
    await follow(client, ids)
    answers = [await ask(client) for _ in range(6)]
    assert Counter(answers) == dict.fromkeys(ids, 2)
    assert answers[:3] == answers[3:]
    assert await only(await client.round_robin(None, annotated=False)) == answers[0]


async def test_random_and_direct(new_runtime: NewRuntime) -> None:
    ids = [await serve(new_runtime()) for _ in range(3)]
    client = await new_runtime().endpoint(PATH).client()
    await follow(client, ids)
    assert {await only(await client.random(None, annotated=False)) for _ in range(100)} == set(ids)
    for instance_id in ids:
        assert await only(await client.direct(None, instance_id, annotated=False)) == instance_id
    with pytest.raises(NoInstancesError, match="12345"):
        await client.direct(None, 12345)
    assert [instance.instance_id for instance in client.instances()] == client.instance_ids()


async def test_one_answer(new_runtime: NewRuntime) -> None:
    ended: list[int] = []

    async def many(request: int) -> AsyncIterator[int]:
        try:
            for answer in range(request):
                yield answer
        finally:
            ended.append(request)

    runtime = new_runtime()
    await runtime.endpoint(PATH).start(many)
    client = await runtime.endpoint(PATH).client()
    assert await client.ask(1, runtime.instance_id) == 0
    assert await client.ask(100_000, runtime.instance_id) == 0
    await eventually(lambda: ended == [1, 100_000])
    with pytest.raises(ConnectionLostError, match="says nothing"):
        await client.ask(0, runtime.instance_id)


async def test_items_are_annotated_unless_asked_otherwise(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    instance_id = await serve(runtime)
    client = await runtime.endpoint(PATH).client()
    item = await only(await client.generate(None))
    assert item.data() == instance_id
    assert str(instance_id) in repr(item)


async def test_known_instances_can_be_called_at_once(new_runtime: NewRuntime) -> None:
    instance_id = await serve(new_runtime())
    client = await new_runtime().endpoint(PATH).client()
    assert await ask(client) == instance_id
    assert await within(client.wait_for_instances()) == [instance_id]


async def test_waiting_for_the_first_instance(new_runtime: NewRuntime) -> None:
    client = await new_runtime().endpoint(PATH).client()
    with pytest.raises(NoInstancesError, match=PATH):
        await client.generate(None)
    with pytest.raises(TimeoutError):
        await client.wait_for_instances(timeout_s=0.01)
    waiting = [asyncio.create_task(client.wait_for_instances()) for _ in range(3)]
    await asyncio.sleep(0)
    instance_id = await serve(new_runtime())
    assert await within(asyncio.gather(*waiting)) == [[instance_id]] * 3


async def test_instances_come_and_go(new_runtime: NewRuntime) -> None:
    client = await new_runtime().endpoint(PATH).client()
    first, second = new_runtime(), new_runtime()
    await serve(first)
    await follow(client, [first.instance_id])
    await serve(second)
    await follow(client, [first.instance_id, second.instance_id])
    await within(first.close())
    await follow(client, [second.instance_id])
    assert {await ask(client) for _ in range(4)} == {second.instance_id}
    await within(second.close())
    await follow(client, [])
    with pytest.raises(NoInstancesError):
        await client.generate(None)


async def test_dead_instance_is_passed_over_and_left_alone(new_runtime: NewRuntime) -> None:
    living, runtime = new_runtime(), new_runtime()
    await serve(living)
    await announce_dead(living, 7)
    client = await runtime.endpoint(PATH).client()
    await follow(client, [7, living.instance_id])
    assert [await ask(client) for _ in range(4)] == [living.instance_id] * 4
    assert client.available_ids() == [living.instance_id]
    with pytest.raises(ConnectionLostError):
        await client.direct(None, 7)


@pytest.mark.alone
async def test_all_instances_are_dead(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    dead = [5, 6, 7]
    for instance_id in dead:
        await announce_dead(runtime, instance_id)
    client = await runtime.endpoint(PATH).client()
    await follow(client, dead)
    started_s = time.monotonic()
    for _ in range(3):
        with pytest.raises(NoInstancesError):
            await client.generate(None)
    assert time.monotonic() - started_s < 1
    assert client.available_ids() == dead  # better than none


async def test_instance_left_alone_is_the_last_resort(new_runtime: NewRuntime) -> None:
    living, runtime = new_runtime(), new_runtime()
    await serve(living)
    await announce_dead(living, 7)
    client = await runtime.endpoint(PATH).client()
    await follow(client, [7, living.instance_id])
    client.avoid(living.instance_id)
    assert client.available_ids() == [7]
    assert await ask(client) == living.instance_id


async def test_foreign_entries_are_ignored(new_runtime: NewRuntime, caplog: pytest.LogCaptureFixture) -> None:
    runtime = new_runtime()
    prefix = runtime.endpoint(PATH).id.instances_prefix
    for key, value in (("zz", b"{}"), ("1f", b"{}"), ("2f", b"\xff"), ("3f", b'"x"'), ("4/5", b"[]")):
        await runtime.discovery.register(prefix + key, value)
    instance_id = await serve(runtime)
    client = await new_runtime().endpoint(PATH).client()
    assert client.instance_ids() == [instance_id]
    assert caplog.text.count("ignoring the discovery entry") == 5
    assert await ask(client) == instance_id


async def test_draining_disturbs_nobody(new_runtime: NewRuntime) -> None:
    """A worker goes while a stream is under way and calls keep coming: all of them succeed."""
    leaving, staying = new_runtime(), new_runtime()
    opened = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[str]:
        yield "started"
        await opened.wait()
        yield "done"

    for runtime in (leaving, staying):
        await serve(runtime)
        await runtime.endpoint("test.backend.slow").start(slow)
    caller = new_runtime()
    client = await caller.endpoint(PATH).client()
    await follow(client, [leaving.instance_id, staying.instance_id])
    slow_client = await caller.endpoint("test.backend.slow").client()
    stream = await slow_client.direct(None, leaving.instance_id, annotated=False)
    assert await within(anext(stream)) == "started"

    answers: list[int] = []

    async def keep_calling() -> None:
        while not closing.done() or answers[-20:] != [staying.instance_id] * 20:
            answers.append(await ask(client))
            await asyncio.sleep(0)

    closing = asyncio.create_task(leaving.close())
    callers = [asyncio.create_task(keep_calling()) for _ in range(8)]
    await eventually(lambda: answers[-20:] == [staying.instance_id] * 20)
    assert not closing.done()
    opened.set()
    assert [item async for item in stream] == ["done"]
    await within(asyncio.gather(closing, *callers))


async def test_calls_under_way_at_the_end_of_an_instance_are_answered(new_runtime: NewRuntime) -> None:
    leaving, staying = new_runtime(), new_runtime()
    for runtime in (leaving, staying):
        await serve(runtime)
    client = await new_runtime().endpoint(PATH).client()
    await follow(client, [leaving.instance_id, staying.instance_id])
    for _ in range(2):
        await ask(client)  # connects
    sent = [await client.generate(None, annotated=False) for _ in range(20)]
    closing = asyncio.create_task(leaving.close())
    answers = Counter([await within(only(stream)) for stream in sent])
    assert answers == {leaving.instance_id: 10, staying.instance_id: 10}
    await within(closing)


async def test_lost_instance_fails_its_streams_and_no_other(new_runtime: NewRuntime) -> None:
    async def endless(request: Any) -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    dying, staying = new_runtime(), new_runtime()
    for runtime in (dying, staying):
        await runtime.endpoint(PATH).start(endless)
    client = await new_runtime().endpoint(PATH).client()
    await follow(client, [dying.instance_id, staying.instance_id])
    lost = await client.direct(None, dying.instance_id, annotated=False)
    kept = await client.direct(None, staying.instance_id, annotated=False)
    for stream in (lost, kept):
        assert await within(anext(stream)) == 1
    await within(dying.close(graceful=False))
    with pytest.raises(DrainingError):
        await within(anext(lost))
    waiting = asyncio.create_task(anext(kept))
    await follow(client, [staying.instance_id])
    assert not waiting.done()
    await kept.aclose()
    await asyncio.wait([waiting])


async def test_typed_replies(new_runtime: NewRuntime) -> None:
    class Point(msgspec.Struct):
        x: int

    async def generate(request: Any) -> AsyncIterator[Any]:
        yield {"x": 1}
        yield {"x": "one"}

    runtime = new_runtime()
    await runtime.endpoint(PATH).start(generate)
    client = await runtime.endpoint(PATH).client(response_type=Point)
    stream = await client.generate(None, annotated=False)
    assert await within(anext(stream)) == Point(1)
    with pytest.raises(ProtocolError, match=f"{runtime.instance_id:x}"):
        await within(anext(stream))


async def test_typed_replies_that_are_pushed(new_runtime: NewRuntime) -> None:
    async def generate(request: Any) -> AsyncIterator[Any]:
        yield 1
        yield "two"
        yield 3

    runtime = new_runtime()
    await runtime.endpoint(PATH).start(generate)
    client = await runtime.endpoint(PATH).client(response_type=int)

    async def push(stream: ReplyStream[int], context: Context, deliver: Deliver[int]) -> None:
        await stream.push_to(deliver)

    async with reading(push, await client.generate(None, annotated=False)) as reader:
        with pytest.raises(ProtocolError, match=f"{runtime.instance_id:x}"):
            await reader.end()
        assert reader.items == [1]
    stream = await client.generate(None, annotated=False)
    await within(stream.push_to(lambda item: False))


async def test_reader_of_the_wrong_opinion_is_not_the_workers_fault(new_runtime: NewRuntime) -> None:
    """Its own errors of decoding are its own."""

    def fail(item: Any) -> bool:
        raise msgspec.DecodeError("mine")

    runtime = new_runtime()
    await serve(runtime)
    client = await runtime.endpoint(PATH).client()
    stream = await client.generate(None, annotated=False)
    with pytest.raises(msgspec.DecodeError, match="mine"):
        await within(stream.push_to(fail))


async def test_requests_that_cannot_travel(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    await serve(runtime)
    client = await runtime.endpoint(PATH).client()
    with pytest.raises(TypeError, match="object"):
        await client.generate(object())
    with pytest.raises(RequestTooLargeError):
        await client.generate(bytes(DEFAULT_MAX_FRAME_BYTES))
    assert await ask(client) == runtime.instance_id


async def test_closed_client_is_forgotten(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    await serve(runtime)
    client = await runtime.endpoint(PATH).client()
    other = await runtime.endpoint(PATH).client()
    await within(client.close())
    await within(client.close())
    assert await ask(other) == runtime.instance_id


def count(*types: type) -> Counter[type]:
    gc.collect()
    return Counter(type(o) for o in gc.get_objects() if type(o) in types)


async def ending(client: Client, kind: str) -> None:
    """One call of each way to end."""
    context = Context(deadline_s=time.monotonic() + (0.05 if kind == "deadline" else 100))
    stream = await client.generate(kind, annotated=False, context=context)
    match kind:
        case "whole":
            assert len([item async for item in stream]) == 3
        case "break":
            async for _ in stream:
                break
        case "close":
            assert await anext(stream) == 0
            await stream.aclose()
        case "push":
            await stream.push_to(lambda item: item < 2)
        case "paused":
            context.pause()
            asyncio.get_running_loop().call_soon(context.kill)
            with pytest.raises(RequestCancelledError):
                await stream.push_to(lambda item: True)
        case "stop":
            context.stop_generating()
            assert [item async for item in stream][-1] == "stopped"
        case "fail":
            with pytest.raises(InvalidRequestError):
                _ = [item async for item in stream]
        case "deadline":
            with pytest.raises(DeadlineExceededError):
                _ = [item async for item in stream]
        case "kill":
            context.kill()
            with pytest.raises(RequestCancelledError):
                await anext(stream)


async def test_a_thousand_calls_leave_nothing(new_runtime: NewRuntime) -> None:
    async def generate(request: str, context: Context) -> AsyncIterator[Any]:
        for number in range(3):
            yield number
        if request == "fail":
            raise InvalidRequestError("as you wish")
        if request != "whole":
            await context.async_killed_or_stopped()
            yield "stopped"

    runtime = new_runtime()
    await runtime.endpoint(PATH).start(generate)
    client = await new_runtime().endpoint(PATH).client()
    await within(client.wait_for_instances())
    kinds = ["whole", "break", "close", "push", "paused", "stop", "fail", "deadline", "kill"]
    await within(asyncio.gather(*(ending(client, kind) for kind in kinds)))
    tasks = asyncio.all_tasks()
    before = count(Reply, ServedCall, Context)  # what other tests have left in this process
    futures = count(asyncio.Future)[asyncio.Future]
    for _ in range(10):
        await within(asyncio.gather(*(ending(client, kinds[number % len(kinds)]) for number in range(100))))
    await eventually(lambda: asyncio.all_tasks() <= tasks)
    await eventually(lambda: count(Reply, ServedCall, Context) <= before)
    assert count(asyncio.Future)[asyncio.Future] <= futures + 2


class Plane:
    """Counts connections; none succeeds until it is allowed to."""

    def __init__(self) -> None:
        self.connections = 0
        self.allowed = asyncio.Event()

    async def listen(self, dispatch: Dispatcher) -> ConnectionListener:
        raise NotImplementedError

    async def connect(self, address: Address) -> Channel:
        self.connections += 1
        await self.allowed.wait()
        raise ConnectionLostError("nobody is there")


async def test_first_calls_share_one_attempt_to_connect() -> None:
    plane = Plane()
    channels = Channels(plane)
    attempts = [asyncio.create_task(channels.get(Address(inproc="x"))) for _ in range(5)]
    await asyncio.sleep(0)
    attempts[0].cancel()  # whoever gives up does not spoil it for the others
    await asyncio.sleep(0)
    plane.allowed.set()
    results = await within(asyncio.gather(*attempts, return_exceptions=True))
    assert plane.connections == 1
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(result, ConnectionLostError) for result in results[1:])


async def test_attempt_that_nobody_waits_for_fails_quietly(caplog: pytest.LogCaptureFixture) -> None:
    plane = Plane()
    channels = Channels(plane)
    attempt = asyncio.create_task(channels.get(Address(inproc="x")))
    await asyncio.sleep(0)
    attempt.cancel()
    await asyncio.wait([attempt])
    plane.allowed.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del attempt
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_closing_while_connecting() -> None:
    channels = Channels(Plane())
    attempt = asyncio.create_task(channels.get(Address(inproc="x")))
    await asyncio.sleep(0)
    await within(channels.close())
    with pytest.raises(asyncio.CancelledError):
        await attempt


async def test_close_can_be_cancelled(new_runtime: NewRuntime) -> None:
    """Else a task that is told to end while it closes a client would go on for ever."""
    client = await new_runtime().endpoint("test.backend.generate").client()
    await asyncio.sleep(0)  # its follower has begun
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(closing)


class SilentPlane(Plane):
    """Connects to workers that say nothing, and one that does."""

    def __init__(self, *speaking: str) -> None:
        super().__init__()
        self._speaking = speaking
        self.channels: dict[str, SilentChannel] = {}

    async def connect(self, address: Address) -> Channel:
        assert address.inproc is not None
        channel = self.channels[address.inproc] = SilentChannel(address.inproc in self._speaking)
        return channel


class SilentChannel:
    """Stalls at the first chance."""

    lost = False

    def __init__(self, speaks: bool) -> None:
        self.stalled = False
        self.quiet = False
        self._speaks = speaks

    @property
    def usable(self) -> bool:
        return not self.stalled

    def call(self, endpoint: str, payload: bytes, context: Context) -> Reply:
        raise NotImplementedError

    def retire(self) -> None:
        """There is nothing to wait for."""

    def beat(self, silence_max_s: float) -> int:
        return 0 if self._speaks else 1000

    def judge(self, beats_max: int) -> None:
        self.stalled = True

    async def close(self) -> None:
        """There is nothing to close."""


async def announcing(*names: str) -> MemoryDiscovery:
    """With an instance at each of these addresses, numbered from 0."""
    discovery = MemoryDiscovery(MemoryStore())
    endpoint = EndpointId.parse(PATH)
    for number, name in enumerate(names):
        instance = Instance(
            instance_id=number,
            namespace=endpoint.namespace,
            component=endpoint.component,
            endpoint=endpoint.name,
            address=Address(inproc=name),
        )
        await discovery.register(instance.key, instance.encode())
    return discovery


async def test_stalled_instances_are_out_of_the_rotation() -> None:
    discovery = await announcing("mute", "fine", "mute too")
    plane = SilentPlane("fine")
    channels = Channels(plane, Heartbeat(interval_s=0.01, stall_s=0.05))
    client = Client(EndpointId.parse(PATH), discovery, channels)
    assert client.available_ids() == [0, 1, 2]
    for instance in client.instances():
        await channels.get(instance.address)
    await eventually(lambda: client.available_ids() == [1])
    assert client.instance_ids() == [0, 1, 2]
    with pytest.raises(UnreachableError):
        await client.call(2, b"", Context())
    plane.channels["mute"].stalled = False  # something has come
    assert client.available_ids() == [0, 1]
    plane.channels["mute"].stalled = True
    client.avoid(1)
    assert client.available_ids() == [1]  # it may be well; of the others it is known that they are not
    await within(client.close())
    await within(channels.close())
    await within(discovery.close())


async def test_quiet_instances_are_asked_only_if_there_are_no_others() -> None:
    discovery = await announcing("a", "b", "c")
    plane = SilentPlane("a", "b", "c")
    channels = Channels(plane, Heartbeat(interval_s=0.01, stall_s=60))
    client = Client(EndpointId.parse(PATH), discovery, channels)
    for instance in client.instances():
        await channels.get(instance.address)
    plane.channels["a"].quiet = True
    await eventually(lambda: client.available_ids() == [1, 2])
    client.avoid(1)
    assert client.available_ids() == [2]
    plane.channels["c"].quiet = True
    await eventually(lambda: client.available_ids() == [0, 2])  # rather than one that could not be reached
    plane.channels["a"].quiet = False  # something has come
    assert client.available_ids() == [0]
    await within(client.close())
    await within(channels.close())
    await within(discovery.close())
