"""Connections that end: in order, by surprise, or before they have begun."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from dynamo.errors import (
    ConnectionLostError,
    DrainingError,
    UnreachableError,
    WorkerStalledError,
)
from dynamo.runtime.request_plane.base import RequestPlane
from dynamo.testing.request_plane.service import call, collect, failure, serving
from dynamo.testing.waiting import eventually, within


class Gate:
    """Handlers that wait until they are let through."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.closed = asyncio.Event()

    async def wait(self, request: Any) -> AsyncIterator[str]:
        try:
            yield "started"
            await self.opened.wait()
            yield "done"
        finally:
            self.closed.set()

    async def stubborn(self, request: Any) -> AsyncIterator[str]:
        """Takes a moment to clean up."""
        try:
            yield "started"
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            self.closed.set()


async def lost_connection_fails_its_streams(plane: RequestPlane) -> None:
    gate = Gate()
    async with serving(plane, gate.wait) as service:
        channel = await service.connect()
        streams = [call(channel, "wait") for _ in range(10)]
        for stream in streams:
            assert await within(anext(stream)) == "started"
        await within(service.listener.close())
        failures = [await failure(stream) for stream in streams]
        assert {type(error) for error in failures} == {ConnectionLostError}
        assert len(set(map(id, failures))) == len(streams), "one error would gather everybody's traceback"
        assert not channel.usable
        assert isinstance(await failure(call(channel, "wait")), ConnectionLostError)
        await within(gate.closed.wait())


async def caller_that_vanishes_frees_the_handler(plane: RequestPlane) -> None:
    gate = Gate()
    async with serving(plane, gate.wait) as service:
        channel = await service.connect()
        stream = call(channel, "wait")
        assert await within(anext(stream)) == "started"
        await within(channel.close())
        await within(gate.closed.wait())
        assert isinstance(await failure(stream), ConnectionLostError)


async def silent_worker_loses_its_calls_and_comes_back(plane: RequestPlane) -> None:
    gate = Gate()
    async with serving(plane, gate.wait) as service:
        channel = await service.connect()
        streams = [call(channel, "wait") for _ in range(10)]
        for stream in streams:
            assert await within(anext(stream)) == "started"
        assert [channel.beat(60) for _ in range(3)] == [0, 1, 2]  # without a turn in which an answer could arrive
        channel.judge(3)
        assert channel.usable
        channel.judge(2)
        assert channel.stalled
        assert not channel.usable
        refused = call(channel, "wait")
        failures = [await failure(stream) for stream in streams]
        assert {type(error) for error in failures} == {WorkerStalledError}
        assert isinstance(await failure(refused), UnreachableError)
        await within(gate.closed.wait())
        await eventually(lambda: channel.usable)
        assert channel.beat(60) == 0
        gate.opened.set()
        assert await collect(call(channel, "wait")) == ["started", "done"]


async def draining_lets_running_calls_finish(plane: RequestPlane) -> None:
    gate = Gate()
    async with serving(plane, gate.wait) as service:
        channel = await service.connect()
        stream = call(channel, "wait")
        assert await within(anext(stream)) == "started"
        drain = asyncio.create_task(service.listener.drain(10))
        await eventually(lambda: not channel.usable)
        assert not drain.done()
        assert isinstance(await failure(call(channel, "wait")), DrainingError)
        gate.opened.set()
        assert await collect(stream) == ["done"]
        await within(drain)


async def draining_refuses_newcomers(plane: RequestPlane) -> None:
    gate = Gate()
    async with serving(plane, gate.wait) as service:
        stream = call(await service.connect(), "wait")
        assert await within(anext(stream)) == "started"
        drain = asyncio.create_task(service.listener.drain(10))
        await asyncio.sleep(0)
        try:
            newcomer = await service.connect()
        except ConnectionLostError:
            pass
        else:
            assert isinstance(await failure(call(newcomer, "wait")), DrainingError)
        gate.opened.set()
        await within(drain)


async def draining_has_a_deadline(plane: RequestPlane) -> None:
    gate = Gate()
    async with serving(plane, gate.stubborn) as service:
        stream = call(await service.connect(), "stubborn")
        assert await within(anext(stream)) == "started"
        await within(service.listener.drain(0))
        assert gate.closed.is_set()
        assert isinstance(await failure(stream), DrainingError)


async def calls_to_one_endpoint_can_be_ended(plane: RequestPlane) -> None:
    """At once, however long their handlers take to clean up."""
    gate = Gate()
    async with serving(plane, gate.wait, gate.stubborn) as service:
        channel = await service.connect()
        ended, neighbour = call(channel, "stubborn"), call(channel, "wait")
        for stream in (ended, neighbour):
            assert await within(anext(stream)) == "started"
        service.listener.end_calls("stubborn", WorkerStalledError("no progress"))
        error = await failure(ended)
        assert isinstance(error, WorkerStalledError)
        assert error.message == "no progress"
        await within(gate.closed.wait())
        gate.opened.set()
        assert await collect(neighbour) == ["done"]


async def draining_without_calls_is_immediate(plane: RequestPlane) -> None:
    async with serving(plane, Gate().wait) as service:
        channel = await service.connect()
        await within(service.listener.drain(1000))
        await eventually(lambda: not channel.usable)


async def retired_channel_closes_after_its_last_call(plane: RequestPlane) -> None:
    gate = Gate()
    async with serving(plane, gate.wait) as service:
        channel = await service.connect()
        stream = call(channel, "wait")
        assert await within(anext(stream)) == "started"
        channel.retire()
        assert not channel.usable
        gate.opened.set()
        assert await collect(stream) == ["done"]
        await eventually(lambda: channel.lost)


async def retired_idle_channel_closes(plane: RequestPlane) -> None:
    async with serving(plane, Gate().wait) as service:
        channel = await service.connect()
        channel.retire()
        await eventually(lambda: channel.lost)


async def nobody_listens(plane: RequestPlane) -> None:
    async with serving(plane, Gate().wait) as service:
        await within(service.listener.close())
        try:
            await service.connect()
        except ConnectionLostError:
            return
        raise AssertionError("connected to a closed listener")


async def wrong_secret_is_refused(plane: RequestPlane) -> None:
    gate = Gate()
    gate.opened.set()
    async with serving(plane, gate.wait) as service:
        friend = await service.connect()
        address = msgspec.structs.replace(service.listener.address, secret="guessed")  # noqa: S106 - no secret
        try:
            stranger = await within(plane.connect(address))
        except UnreachableError:
            pass
        else:
            error = await failure(call(stranger, "wait"))
            assert isinstance(
                error, UnreachableError | DrainingError
            )  # the latter once it has heard that it is refused
            await within(stranger.close())
        assert not gate.closed.is_set()
        assert await collect(call(friend, "wait")) == ["started", "done"]


async def closing_is_idempotent(plane: RequestPlane) -> None:
    async with serving(plane, Gate().wait) as service:
        channel = await service.connect()
        await within(channel.close())
        await within(channel.close())
        await within(service.listener.close())
        await within(service.listener.close())


CASES = (
    lost_connection_fails_its_streams,
    caller_that_vanishes_frees_the_handler,
    silent_worker_loses_its_calls_and_comes_back,
    draining_lets_running_calls_finish,
    draining_refuses_newcomers,
    draining_has_a_deadline,
    calls_to_one_endpoint_can_be_ended,
    draining_without_calls_is_immediate,
    retired_channel_closes_after_its_last_call,
    retired_idle_channel_closes,
    nobody_listens,
    wrong_secret_is_refused,
    closing_is_idempotent,
)
