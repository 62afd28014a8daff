"""A runtime's settings, its beginning and its end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo.errors import (
    ConfigError,
    DrainingError,
    HandlerError,
    NoInstancesError,
    NotFoundError,
    UnavailableError,
    WorkerStalledError,
)
from dynamo.runtime import Context, DistributedRuntime, RuntimeConfig, distributed
from dynamo.runtime.codec import encode_payload
from dynamo.runtime.discovery.base import Delete, Discovery, Put, Registration
from dynamo.runtime.discovery.file import FileDiscovery
from dynamo.runtime.discovery.memory import MemoryDiscovery
from dynamo.runtime.request_plane import listener
from dynamo.testing import eventually, within

NewRuntime = Callable[[], DistributedRuntime]


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


async def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYN_DISCOVERY_BACKEND", "mem")
    monkeypatch.setenv("DYN_REQUEST_PLANE", "inproc")
    assert isinstance(DistributedRuntime().discovery, MemoryDiscovery)
    assert isinstance(DistributedRuntime(None, "file").discovery, FileDiscovery)
    monkeypatch.setenv("DYN_DISCOVERY_BACKEND", "memory")
    assert isinstance(DistributedRuntime(asyncio.get_running_loop()).discovery, MemoryDiscovery)


async def test_upstreams_settings_are_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DYN_DISCOVERY_BACKEND", "kubernetes")
    monkeypatch.setenv("DYN_REQUEST_PLANE", "nats")
    monkeypatch.setenv("DYN_SYSTEM_PORT", "http")
    runtime = DistributedRuntime()
    assert runtime.config.discovery_backend == "file"
    assert runtime.config.request_plane == "tcp"
    for name in ("DYN_DISCOVERY_BACKEND='kubernetes'", "DYN_REQUEST_PLANE='nats'", "DYN_SYSTEM_PORT='http'"):
        assert name in caplog.text


async def test_wrong_settings_in_a_program_are_errors() -> None:
    with pytest.raises(ConfigError, match="kubernetes"):
        DistributedRuntime(None, "kubernetes")
    with pytest.raises(ConfigError, match="nats"):
        DistributedRuntime(request_plane="nats")
    assert isinstance(DistributedRuntime(discovery_backend="memory").discovery, MemoryDiscovery)


async def test_directory_of_the_file_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path / "here"))
    runtime = DistributedRuntime()
    await runtime.endpoint("a.b.c").start(echo)
    assert len(list((tmp_path / "here").iterdir())) == 1
    await within(runtime.close())
    assert list((tmp_path / "here").iterdir()) == []


async def test_closing_is_idempotent(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    await runtime.endpoint("a.b.c").start(echo)
    await within(asyncio.gather(runtime.close(), runtime.close(graceful=False)))
    await within(runtime.close())
    assert runtime.is_shutting_down
    assert not runtime.health.ready


async def test_closing_goes_on_when_its_caller_is_cancelled(new_runtime: NewRuntime) -> None:
    runtime, other = new_runtime(), new_runtime()
    await runtime.endpoint("a.b.c").start(echo)
    client = await other.endpoint("a.b.c").client()
    closing = asyncio.create_task(runtime.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    while client.instance_ids():
        await within(client.wait_for_change())
    await within(runtime.close())


async def test_serve_endpoint_returns_at_shutdown(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    serving = [
        asyncio.create_task(runtime.endpoint(f"a.b.{name}").serve_endpoint(echo, graceful_shutdown=name != "c"))
        for name in ("c", "d")
    ]
    await eventually(lambda: len(runtime.health.endpoints) == 2)
    assert runtime.health.ready
    runtime.shutdown()
    await within(asyncio.gather(*serving))
    assert runtime.health.endpoints == {"a.b.c": False, "a.b.d": False}


async def test_ungraceful_end_waits_for_nobody(new_runtime: NewRuntime) -> None:
    async def endless(request: Any) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.set()

    ended = asyncio.Event()
    runtime, other = new_runtime(), new_runtime()
    serving = asyncio.create_task(runtime.endpoint("a.b.c").serve_endpoint(endless, graceful_shutdown=False))
    client = await other.endpoint("a.b.c").client()
    await within(client.wait_for_instances())
    stream = await client.generate(None)
    await within(anext(stream))
    runtime.shutdown()
    await within(serving, 2)
    assert ended.is_set()


async def test_nothing_new_is_served_during_shutdown(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    runtime.shutdown()
    with pytest.raises(DrainingError):
        await runtime.endpoint("a.b.c").start(echo)
    with pytest.raises(DrainingError):
        await runtime.register("k", b"")


async def test_endpoint_that_could_not_be_announced_can_be_tried_again(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    runtime = DistributedRuntime(config=RuntimeConfig(file_kv=str(tmp_path / "file")))
    with pytest.raises(ConfigError, match="file"):
        await runtime.endpoint("a.b.c").start(echo)
    assert not runtime.health.ready
    (tmp_path / "file").unlink()
    await runtime.endpoint("a.b.c").start(echo)
    assert runtime.health.ready
    await within(runtime.close())


async def test_an_endpoint_can_be_given_up_and_served_again(new_runtime: NewRuntime) -> None:
    runtime, other = new_runtime(), new_runtime()
    endpoint = runtime.endpoint("a.b.c")
    client = await other.endpoint("a.b.c").client()
    for _ in range(2):
        await endpoint.start(echo)
        await within(client.wait_for_instances())
        assert runtime.health.endpoints == {"a.b.c": True}
        await runtime.stop_serving(endpoint.id)
        await runtime.stop_serving(endpoint.id)
        await eventually(lambda: not client.instance_ids())
        assert not runtime.health.endpoints
    assert runtime.health.ready  # with nothing to serve, nothing is missing


async def test_an_endpoint_that_is_given_up_while_the_runtime_closes(
    new_runtime: NewRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those after it are withdrawn all the same, before requests under way have to end."""
    runtime = new_runtime()
    for name in ("one", "two"):
        await runtime.endpoint(f"a.b.{name}").start(echo)
    first, second = runtime._registrations.values()
    withdraw, withdrawn = type(first).withdraw, list[object]()

    async def withdraw_both_ways(registration: Any) -> None:
        withdrawn.append(registration)
        await withdraw(registration)
        if len(withdrawn) == 1:
            await runtime.stop_serving(runtime.endpoint("a.b.one").id)

    async def drain(timeout_s: float) -> None:
        assert second in withdrawn

    monkeypatch.setattr(type(first), "withdraw", withdraw_both_ways)
    monkeypatch.setattr(runtime._listener, "drain", drain)
    await within(runtime.close())


async def test_port_in_use(new_runtime: NewRuntime, tmp_path: Path) -> None:
    first = DistributedRuntime(config=RuntimeConfig(file_kv=str(tmp_path)))
    await first.endpoint("a.b.c").start(echo)
    client = await first.endpoint("a.b.c").client()
    port = client.instances()[0].address.tcp_port
    assert port is not None
    second = DistributedRuntime(config=RuntimeConfig(file_kv=str(tmp_path), rpc_port=port))
    with pytest.raises(ConfigError, match=str(port)):
        await second.endpoint("a.b.c").start(echo)
    await within(second.close())
    await within(first.close())


async def test_siblings_are_instances_of_their_own(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    siblings = [runtime.sibling() for _ in range(2)]
    for member in (runtime, *siblings):
        await member.endpoint("a.b.c").start(echo)
    other = new_runtime()
    client = await other.endpoint("a.b.c").client()
    while len(client.instance_ids()) < 3:
        await within(client.wait_for_change())
    assert runtime.health.endpoints == {"a.b.c": True}
    assert [item.data() async for item in await client.generate(1)] == [1]
    await within(runtime.close())
    while client.instance_ids():
        await within(client.wait_for_change())
    with pytest.raises(NoInstancesError):
        await client.generate(1)


async def test_sibling_takes_nothing_up_once_the_runtime_shuts_down(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    sibling = runtime.sibling()
    runtime.shutdown()
    with pytest.raises(DrainingError):
        await sibling.endpoint("a.b.c").start(echo)
    with pytest.raises(DrainingError):
        await runtime.sibling().register("k", b"v")


async def test_call_to_an_endpoint_that_the_instance_does_not_serve(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    await runtime.endpoint("a.b.c").start(echo)
    client = await runtime.endpoint("a.b.c").client()
    channel = await client._connect(runtime.instance_id)
    with pytest.raises(NotFoundError, match=r"a\.b\.other"):
        await within(anext(channel.call("a.b.other", encode_payload(None), Context())))


async def test_metrics_of_what_is_served(new_runtime: NewRuntime) -> None:
    async def fails(request: Any) -> AsyncIterator[Any]:
        raise KeyError("x")
        yield

    runtime = new_runtime()
    await runtime.endpoint("a.b.c").start(fails)
    client = await runtime.endpoint("a.b.c").client()
    with pytest.raises(HandlerError):
        await within(anext(await client.generate(None)))
    endpoint = runtime.shared.metrics.endpoint("a", "b", "c")
    await eventually(lambda: endpoint.inflight == 0)
    assert (endpoint.requests, endpoint.errors) == (1, {"handler_error": 1})


class TestSuspension:
    """An endpoint that cannot serve for a while."""

    async def test_is_out_of_discovery_until_it_is_over(self, new_runtime: NewRuntime) -> None:
        runtime = new_runtime()
        endpoint = runtime.endpoint("test.backend.generate")
        await endpoint.start(echo)
        await runtime.endpoint("test.backend.other").start(echo)
        client = await new_runtime().endpoint("test.backend.generate").client()
        other = await new_runtime().endpoint("test.backend.other").client()
        await within(client.wait_for_instances())
        for _ in range(2):
            await runtime.suspend(endpoint.id, "it hangs")
            await eventually(lambda: not client.instance_ids())
            assert not runtime.health.ready
            assert other.instance_ids()
            await runtime.resume(endpoint.id)
            assert await within(client.wait_for_instances(), 5) == [runtime.instance_id]
            assert runtime.health.ready
            stream = await client.generate(1, annotated=False)
            assert await within(anext(stream)) == 1

    async def test_ends_calls_and_refuses_others(self, new_runtime: NewRuntime) -> None:
        async def hangs(request: Any) -> AsyncIterator[int]:
            yield 1
            await asyncio.Event().wait()

        runtime = new_runtime()
        endpoint = runtime.endpoint("test.backend.generate")
        await endpoint.start(hangs)
        client = await new_runtime().endpoint("test.backend.generate").client()
        await within(client.wait_for_instances())
        stream = await client.generate(None, annotated=False)
        assert await within(anext(stream)) == 1
        suspended = asyncio.create_task(runtime.suspend(endpoint.id, "it hangs"))
        with pytest.raises(WorkerStalledError, match="it hangs"):
            await within(anext(stream))
        late = await client.direct(None, runtime.instance_id, annotated=False) if client.instance_ids() else None
        if late is not None:  # else the caller has heard of it before
            with pytest.raises(UnavailableError, match="it hangs"):
                await within(anext(late))
        await within(suspended)

    async def test_of_an_endpoint_that_is_not_served(self, new_runtime: NewRuntime) -> None:
        runtime = new_runtime()
        endpoint = runtime.endpoint("test.backend.generate")
        await runtime.suspend(endpoint.id, "it hangs")
        await runtime.resume(endpoint.id)
        await endpoint.start(echo)
        await runtime.suspend(endpoint.id, "it hangs")
        await runtime.stop_serving(endpoint.id)
        await runtime.resume(endpoint.id)
        client = await new_runtime().endpoint("test.backend.generate").client()
        assert not client.instance_ids()
        await endpoint.start(echo)  # its path is free
        await within(client.wait_for_instances())

    async def test_calls_that_it_has_ended_hold_up_no_drain(
        self, new_runtime: NewRuntime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An engine that hangs does not take them back; and nobody waits for them."""

        async def hangs(request: Any) -> AsyncIterator[int]:
            try:
                yield 1
                await asyncio.Event().wait()
            finally:
                await released.wait()

        released = asyncio.Event()
        monkeypatch.setattr(listener, "_CLEANUP_S", 0.02)
        runtime = new_runtime()
        endpoint = runtime.endpoint("test.backend.generate")
        await endpoint.start(hangs)
        client = await new_runtime().endpoint("test.backend.generate").client()
        await within(client.wait_for_instances())
        stream = await client.generate(None, annotated=False)
        assert await within(anext(stream)) == 1
        await runtime.suspend(endpoint.id, "it hangs")
        assert runtime._listener is not None
        await within(runtime._listener.drain(1000))
        assert "did not finish" not in caplog.text
        released.set()

    async def test_does_not_outlast_the_end(self, new_runtime: NewRuntime) -> None:
        runtime = new_runtime()
        endpoint = runtime.endpoint("test.backend.generate")
        await endpoint.start(echo)
        await runtime.suspend(endpoint.id, "it hangs")
        await within(runtime.close())
        await runtime.resume(endpoint.id)


class TestLeaving:
    """A component's endpoints, while the runtime goes on."""

    async def test_calls_under_way_may_finish_and_new_ones_are_refused(self, new_runtime: NewRuntime) -> None:
        runtime, caller = new_runtime(), new_runtime()
        asked, answers = asyncio.Event(), asyncio.Event()

        async def slow(request: str) -> AsyncIterator[str]:
            asked.set()
            await answers.wait()
            yield request

        for path in ("a.b.one", "a.b.two", "a.bc.one"):
            await runtime.endpoint(path).start(slow if path == "a.b.one" else echo)
        client = await caller.endpoint("a.b.one").client()
        other = await caller.endpoint("a.bc.one").client()
        await within(asyncio.gather(client.wait_for_instances(), other.wait_for_instances()))
        stream = await client.generate("late", annotated=False)
        await within(asked.wait())
        channel = client._open[runtime.instance_id]

        leaving = asyncio.create_task(runtime.leave("a", "b", 30.0))
        await eventually(lambda: runtime.health.endpoints.get("a.b.one") is False)
        assert not runtime.health.ready
        with pytest.raises(DrainingError):  # to who has not heard of it
            await within(anext(channel.call("a.b.two", encode_payload("new"), Context())))
        await eventually(lambda: not client.instance_ids())
        assert not leaving.done()
        answers.set()
        assert await within(anext(stream)) == "late"
        await within(leaving)
        assert runtime.health.endpoints == {"a.bc.one": True}
        assert runtime.health.ready
        assert await within(anext(await other.generate("there", annotated=False))) == "there"

        await runtime.endpoint("a.b.one").start(echo)
        await within(client.wait_for_instances())
        assert await within(anext(await client.generate("again", annotated=False))) == "again"

    async def test_calls_that_take_too_long_end(self, new_runtime: NewRuntime) -> None:
        runtime, caller = new_runtime(), new_runtime()
        ended = asyncio.Event()

        async def endless(request: str) -> AsyncIterator[str]:
            try:
                yield "begun"
                await asyncio.Event().wait()
            finally:
                ended.set()

        for path in ("a.b.one", "a.c.one"):
            await runtime.endpoint(path).start(endless)
        clients = [await caller.endpoint(path).client() for path in ("a.b.one", "a.c.one")]
        await within(asyncio.gather(*(client.wait_for_instances() for client in clients)))
        left, stays = [await client.generate("", annotated=False) for client in clients]
        assert await within(anext(left)) == await within(anext(stays)) == "begun"
        await within(runtime.leave("a", "b", 0.0))
        assert ended.is_set()
        with pytest.raises(DrainingError):
            await within(anext(left))
        going_on = asyncio.ensure_future(anext(stays))
        await asyncio.sleep(0)
        assert not going_on.done()
        await stays.aclose()
        going_on.cancel()
        await asyncio.wait([going_on])

    async def test_what_is_watched_is_not_any_more(self, new_runtime: NewRuntime) -> None:
        runtime = new_runtime()
        await runtime.endpoint("a.b.one").start(echo, health_check_payload={})
        assert len(runtime._watchdogs) == 1
        await within(runtime.leave("a", "b", 30.0))
        assert not runtime._watchdogs
        await within(runtime.leave("a", "b", 30.0))  # there is nothing

    async def test_an_entry_is_taken_back(self, new_runtime: NewRuntime) -> None:
        runtime = new_runtime()
        watch = runtime.discovery.watch("things/")
        for _ in range(2):
            await runtime.register("things/one", b"1")
            assert isinstance(await within(anext(watch)), Put)
            await runtime.unregister("things/one")
            assert isinstance(await within(anext(watch)), Delete)
        await runtime.unregister("things/one")
        await runtime.unregister("things/two")


class SlowRegistry:
    """A discovery backend's register(), which takes until `answered`."""

    def __init__(self, discovery: Discovery) -> None:
        self._register = discovery.register
        self.asked = asyncio.Event()
        self.answered = asyncio.Event()

    async def register(self, key: str, value: bytes) -> Registration:
        self.asked.set()
        await self.answered.wait()
        return await self._register(key, value)


async def test_an_endpoint_that_is_given_up_before_it_is_announced(
    new_runtime: NewRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the first time, or again after it was suspended."""
    runtime = new_runtime()
    endpoint = runtime.endpoint("a.b.c")
    client = await new_runtime().endpoint("a.b.c").client()
    for suspended in (False, True):
        if suspended:
            await endpoint.start(echo)
            await runtime.suspend(endpoint.id, "it hangs")
            await eventually(lambda: not client.instance_ids())
        with monkeypatch.context() as patch:
            registry = SlowRegistry(runtime.discovery)
            patch.setattr(runtime.discovery, "register", registry.register)
            work = runtime.resume(endpoint.id) if suspended else endpoint.start(echo)
            announcing = asyncio.create_task(work)
            await within(registry.asked.wait())
            await runtime.stop_serving(endpoint.id)
            registry.answered.set()
            await within(announcing)
        assert not runtime.health.endpoints
        assert not runtime._registrations


async def test_what_is_announced_while_the_runtime_begins_to_close_is_taken_back(
    new_runtime: NewRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when requests under way have ended."""

    async def drain(timeout_s: float) -> None:
        await within(draining.wait())

    draining = asyncio.Event()
    runtime = new_runtime()
    await runtime.endpoint("a.b.other").start(echo)
    client = await new_runtime().endpoint("a.b.c").client()
    registry = SlowRegistry(runtime.discovery)
    monkeypatch.setattr(runtime.discovery, "register", registry.register)
    monkeypatch.setattr(runtime._listener, "drain", drain)
    announcing = asyncio.create_task(runtime.endpoint("a.b.c").start(echo))
    await within(registry.asked.wait())
    closing = asyncio.create_task(runtime.close())
    await asyncio.sleep(0)
    registry.answered.set()
    with pytest.raises(DrainingError):
        await within(announcing)
    await eventually(lambda: not client.instance_ids())
    draining.set()
    await within(closing)


class HangingRegistration:
    """Of a discovery backend that does not answer."""

    def __init__(self) -> None:
        self.withdrawn = False

    async def withdraw(self) -> None:
        self.withdrawn = True
        await asyncio.Event().wait()


async def test_discovery_that_does_not_answer_cannot_hold_up_the_end(
    new_runtime: NewRuntime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(distributed, "_WITHDRAW_S", 0.02)
    runtime = new_runtime()

    registrations: list[HangingRegistration] = []

    async def register(key: str, value: bytes) -> HangingRegistration:
        registrations.append(HangingRegistration())
        return registrations[-1]

    monkeypatch.setattr(runtime.discovery, "register", register)
    for name in ("c", "d"):
        await runtime.endpoint(f"a.b.{name}").start(echo)
    await within(runtime.close())
    assert [registration.withdrawn for registration in registrations] == [True, True]  # and will be, some time
    assert "has not taken back" in caplog.text
