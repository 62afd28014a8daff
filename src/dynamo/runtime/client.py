"""The calling side of an endpoint: which instances there are, and sending requests to one of them."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec

from dynamo.errors import ConnectionLostError, DrainingError, NoInstancesError, ProtocolError
from dynamo.runtime.channels import Channels
from dynamo.runtime.codec import PAYLOAD_ERRORS, encode_payload, payload_decoder
from dynamo.runtime.context import Context
from dynamo.runtime.discovery.base import Discovery, Event, Put
from dynamo.runtime.discovery.entry import read_entry
from dynamo.runtime.handler import closing
from dynamo.runtime.instance import EndpointId, Instance
from dynamo.runtime.request_plane.base import Channel
from dynamo.runtime.request_plane.reply import Reply
from dynamo.runtime.stage import Deliver

logger = logging.getLogger(__name__)

T = TypeVar("T")

_AVOID_S = 1.0  # how long an instance that could not be reached is left alone, unless there is no other


class Annotated(Generic[T]):
    """An item of a reply, wrapped as upstream's clients expect it."""

    __slots__ = ("_data",)

    def __init__(self, data: T) -> None:
        self._data = data

    def data(self) -> T:
        return self._data

    def __repr__(self) -> str:
        return f"Annotated({self._data!r})"


class ReplyStream(AsyncIterator[T]):
    """A reply with its payloads decoded; raises the DynamoError that ended it."""

    __slots__ = ("_decode", "_reply", "instance_id")

    def __init__(self, reply: Reply, decode: Callable[[msgspec.Raw], T], instance_id: int) -> None:
        self._reply = reply
        self._decode = decode
        self.instance_id = instance_id  # who answers

    def __del__(self) -> None:
        self.abandon()  # as a plain async generator, it may be dropped half-read

    async def __anext__(self) -> T:
        payload = await anext(self._reply)
        try:
            return self._decode(payload)
        except PAYLOAD_ERRORS as error:
            raise self._wrong_shape(error) from error

    async def push_to(self, deliver: Deliver[T]) -> None:
        """Calls `deliver` with each item the moment it arrives; ends as a Stage does."""
        decode = self._decode

        def push(payload: msgspec.Raw) -> bool:
            try:
                item = decode(payload)
            except PAYLOAD_ERRORS as error:
                raise self._wrong_shape(error) from error
            return deliver(item)

        await self._reply.push_to(push)

    async def aclose(self) -> None:
        """Gives the call up; idempotent."""
        await self._reply.aclose()

    def abandon(self) -> None:
        """The same a moment later, for those who cannot wait."""
        self._reply.abandon()

    def _wrong_shape(self, error: Exception) -> ProtocolError:
        return ProtocolError(f"instance {self.instance_id:x} sent an item of the wrong shape: {error}")


class Client:
    """Calls the instances of one endpoint, following discovery. Made by `Endpoint.client()`."""

    def __init__(
        self,
        endpoint: EndpointId,
        discovery: Discovery,
        channels: Channels,
        response_type: Any = Any,
        on_close: Callable[["Client"], None] = lambda _: None,
    ) -> None:
        self.endpoint = endpoint
        self._channels = channels
        self._on_close = on_close
        self._decode = payload_decoder(response_type)
        self._instances: dict[int, Instance] = {}
        self._ids: list[int] = []  # of _instances, ascending
        self._path = str(endpoint)
        self._avoid_until_s: dict[int, float] = {}
        self._open: dict[int, Channel] = {}
        self._changed = asyncio.Event()
        self._turn = 0
        self._watch = discovery.watch(endpoint.instances_prefix)
        for event in self._watch.take():  # known instances can be called at once
            self._apply(event)
        self._follower = asyncio.create_task(self._follow(), name=f"client-{endpoint}")

    def instance_ids(self) -> list[int]:
        """The live instances, in ascending order."""
        return list(self._ids)

    def instances(self) -> list[Instance]:
        return [self._instances[i] for i in self._ids]

    def available_ids(self) -> list[int]:
        """The live instances but for those that are stalled or quiet, or just could not be reached.

        If that leaves nobody: those that were not unreachable; then all that are not stalled.
        """
        if not self._avoid_until_s and not self._channels.any_quiet:
            return list(self._ids)
        now_s = time.monotonic()
        self._avoid_until_s = {i: t for i, t in self._avoid_until_s.items() if t > now_s and i in self._instances}
        awake = [i for i in self._ids if not self.is_stalled(i)]
        reached = [i for i in awake if i not in self._avoid_until_s]
        return [i for i in reached if not self._channels.is_quiet(self._instances[i].address)] or reached or awake

    def is_stalled(self, instance_id: int) -> bool:
        """Whether the instance gives no sign of life: it would be refused any call."""
        instance = self._instances.get(instance_id)
        return instance is not None and self._channels.is_stalled(instance.address)

    async def wait_for_instances(self, timeout_s: float | None = None) -> list[int]:
        """Waits for at least one instance; TimeoutError after `timeout_s`."""
        async with asyncio.timeout(timeout_s):
            while not self._instances:
                await self.wait_for_change()
        return self.instance_ids()

    async def wait_for_change(self) -> None:
        """Waits until an instance appears or goes."""
        self._changed.clear()
        await self._changed.wait()

    def generate(
        self, request: Any, annotated: bool = True, context: Context | None = None
    ) -> Awaitable[ReplyStream[Any]]:
        """Sends `request` to the next instance in turn; awaited, gives an iterator over the items of the reply.

        Items are wrapped in Annotated unless `annotated` is False. Raises NoInstancesError when nobody serves the
        endpoint, and while iterating whatever DynamoError the handler ended with.
        """
        return self._send(self._next_in_turn, request, annotated, context)

    def round_robin(
        self, request: Any, annotated: bool = True, context: Context | None = None
    ) -> Awaitable[ReplyStream[Any]]:
        """The same: taking turns is the default."""
        return self._send(self._next_in_turn, request, annotated, context)

    def random(
        self, request: Any, annotated: bool = True, context: Context | None = None
    ) -> Awaitable[ReplyStream[Any]]:
        """Like generate(), with any of the instances."""
        return self._send(random.choice, request, annotated, context)

    async def direct(
        self, request: Any, instance_id: int, annotated: bool = True, context: Context | None = None
    ) -> ReplyStream[Any]:
        """Sends `request` to that instance and no other."""
        reply = await self.call(instance_id, encode_payload(request), context or Context())
        return ReplyStream(reply, self._decoder(annotated), instance_id)

    async def ask(self, request: Any, instance_id: int) -> Any:
        """What an instance answers that gives one answer, and no stream.

        Raises what direct() and its stream raise; ConnectionLostError for an instance that gives none.
        """
        async with closing(await self.direct(request, instance_id, annotated=False)) as answers:
            async for answer in answers:
                return answer
        raise ConnectionLostError(f"instance {instance_id:x} of {self.endpoint} says nothing")

    async def call(self, instance_id: int, payload: bytes, context: Context) -> Reply:
        """Sends an encoded request.

        Raises NoInstancesError for an unknown instance, ConnectionLostError or DrainingError when it takes no calls.
        """
        channel = self._open.get(instance_id)
        if channel is None or not channel.usable:
            channel = await self._connect(instance_id)
        return channel.call(self._path, payload, context)

    def avoid(self, instance_id: int) -> None:
        """Leaves an instance alone for a moment, because it was seen to fail."""
        self._avoid_until_s[instance_id] = time.monotonic() + _AVOID_S

    async def close(self) -> None:
        self._watch.close()
        self._follower.cancel()
        await asyncio.wait([self._follower])  # not `await`: its cancellation must not be taken for the caller's
        self._on_close(self)

    async def _connect(self, instance_id: int) -> Channel:
        instance = self._instances.get(instance_id)
        if instance is None:
            raise NoInstancesError(f"there is no instance {instance_id} of {self.endpoint}")
        try:
            channel = self._open[instance_id] = await self._channels.get(instance.address)
        except (ConnectionLostError, DrainingError):
            self.avoid(instance_id)
            raise
        return channel

    async def _send(
        self, pick: Callable[[list[int]], int], request: Any, annotated: bool, context: Context | None
    ) -> ReplyStream[Any]:
        payload = encode_payload(request)
        context = context or Context()
        candidates = self.available_ids()
        failed: set[int] = set()
        while candidates:
            instance_id = pick(candidates)
            try:
                reply = await self.call(instance_id, payload, context)
            except (ConnectionLostError, DrainingError, NoInstancesError):
                failed.add(instance_id)
                candidates = [i for i in self.available_ids() if i not in failed]
            else:
                return ReplyStream(reply, self._decoder(annotated), instance_id)
        raise NoInstancesError(f"no live instance of {self.endpoint}")

    def _decoder(self, annotated: bool) -> Callable[[msgspec.Raw], Any]:
        decode = self._decode
        return (lambda payload: Annotated(decode(payload))) if annotated else decode

    def _next_in_turn(self, candidates: list[int]) -> int:
        self._turn += 1
        return candidates[self._turn % len(candidates)]

    async def _follow(self) -> None:
        async for event in self._watch:
            self._apply(event)

    def _apply(self, event: Event) -> None:
        try:
            instance_id = int(event.key.rpartition("/")[2], 16)
            instance = read_entry(event, Instance) if isinstance(event, Put) else None
        except ValueError as error:
            logger.warning("ignoring the discovery entry %s: %s", event.key, error)
            return
        if instance is not None:
            self._instances[instance_id] = instance
        elif (gone := self._instances.pop(instance_id, None)) is not None:
            self._open.pop(instance_id, None)
            self._channels.forget(gone.address)
        self._ids = sorted(self._instances)
        self._changed.set()
