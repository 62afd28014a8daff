"""Routers of the same workers share their load: what each has sent counts with the others too.

Best effort: a router that does not hear of a request for a moment decides without it. Each serves a feed of its own
requests, with the names of their blocks, and follows those of the others; one that has gone takes its requests with it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from dynamo.errors import DynamoError
from dynamo.protocols.kv_events import HASH_BYTES
from dynamo.protocols.replica_sync import PrefillDone, SequenceAdded, SequenceEvent, SequenceFreed
from dynamo.router.model_endpoint import model_endpoint
from dynamo.router.scheduler import KvScheduler
from dynamo.router.sequences import ActiveSequence
from dynamo.router.subscriber import FeedSubscriber
from dynamo.runtime.codec import PAYLOAD_ERRORS, payload_decoder
from dynamo.runtime.component import Endpoint
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.event_feed import EventFeed, FeedItem
from dynamo.runtime.instance import EndpointId
from dynamo.tokens import hashes_from_bytes, hashes_to_bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A part of a dump: so many sequences, and with more than one of them so many bytes of hashes.
_PART_SEQUENCES = 1024
_PART_BYTES = 64 << 10


class ReplicaSync:
    """One router's part in it. Closed by close()."""

    def __init__(
        self,
        runtime: DistributedRuntime,
        workers: EndpointId,
        model: str,
        scheduler: KvScheduler,
        now_s: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        """Routers of the same endpoint of workers and the same model find each other.

        `scheduler` is this router's, whose sequences those of the others are added to; `on_change` is told of it.
        """
        self._scheduler = scheduler
        self._sequences = scheduler.sequences
        self._now_s = now_s
        self._on_change = on_change
        self._dumped: dict[int, set[str]] = {}  # by instance id: the keys of those in what has come of a dump
        self._warned: set[int] = set()  # instances whose mistakes the log has had
        self._feed = EventFeed(self._dump)
        self._endpoint = Endpoint(runtime, sync_endpoint(workers, model))
        self._client = runtime.client(self._endpoint.id, FeedItem)
        self._subscriber = FeedSubscriber(
            self._client, self, event_plane=runtime.event_plane, own_id=runtime.instance_id
        )
        self._starting = asyncio.create_task(self._start(), name=f"start-{self._endpoint}")

    async def close(self) -> None:
        """Tells the others that this router's requests are no longer its own business."""
        self._starting.cancel()
        await asyncio.wait([self._starting])
        await self._endpoint.runtime.stop_serving(self._endpoint.id)
        self._feed.close()
        await self._subscriber.close()
        await self._client.close()

    def publish_added(self, request_id: str) -> None:
        """A request of this router's has just been given its worker, and counts among the sequences."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._feed.publish(_added(request_id, sequence))

    def publish(self, event: PrefillDone | SequenceFreed) -> None:
        """What has become of it."""
        self._feed.publish(event)

    def apply_payload(self, instance_id: int, payload: msgspec.Raw) -> None:
        """As FeedSink."""
        event = self._decoded(_decode_event, instance_id, payload)
        if isinstance(event, SequenceAdded):
            self._add(instance_id, event)
        elif isinstance(event, PrefillDone):
            self._scheduler.first_token(_key(instance_id, event.request_id), self._now_s())
        elif isinstance(event, SequenceFreed):
            self._sequences.free(_key(instance_id, event.request_id))
        self._on_change()

    def add_part(self, instance_id: int, payload: msgspec.Raw) -> None:
        """As FeedSink.

        Each sequence counts at once, in place of the one of its name: what the dump says of it is true, whether or not
        the rest of it comes. What it does not name has ended, but that only its end can tell.
        """
        dumped = self._dumped.setdefault(instance_id, set())
        for added in self._decoded(_decode_part, instance_id, payload) or ():
            self._add(instance_id, added)
            dumped.add(_key(instance_id, added.request_id))
        self._on_change()

    def end_dump(self, instance_id: int) -> None:
        """As FeedSink."""
        dumped = self._dumped.pop(instance_id, set())
        for key, _ in self._sequences.of_source(str(instance_id)):
            if key not in dumped:
                self._sequences.free(key)
        self._on_change()

    def drop_dump(self, instance_id: int) -> None:
        """As FeedSink."""
        self._dumped.pop(instance_id, None)

    def forget(self, instance_id: int) -> None:
        """As FeedSink."""
        self._dumped.pop(instance_id, None)
        self._warned.discard(instance_id)
        self._sequences.drop_source(str(instance_id))
        self._on_change()

    async def _start(self) -> None:
        try:
            await self._feed.start(self._endpoint)
        except (DynamoError, ValueError) as error:  # others do without this router's load
            logger.warning("this router's load is not shared: %s", error)

    def _add(self, instance_id: int, added: SequenceAdded) -> None:
        if (mistake := _mistake(added, self._scheduler.block_size)) is not None:
            self._warn(instance_id, mistake)
            return
        self._sequences.add(
            _key(instance_id, added.request_id),
            added.worker,
            prompt_tokens=added.tokens,
            prefill_tokens=added.prefill_tokens,
            now_s=self._now_s(),
            hashes=hashes_from_bytes(added.hashes),
            prefilled=added.prefilled,
            source=str(instance_id),
        )

    def _decoded(self, decode: Callable[[msgspec.Raw], T], instance_id: int, payload: msgspec.Raw) -> T | None:
        try:
            return decode(payload)
        except PAYLOAD_ERRORS as error:
            self._warn(instance_id, error)
            return None

    def _warn(self, instance_id: int, mistake: object) -> None:
        if instance_id not in self._warned:
            self._warned.add(instance_id)
            logger.warning("router %x says of its load what makes no sense, it is left out: %s", instance_id, mistake)

    def _dump(self) -> Iterator[list[SequenceAdded]]:
        return _parts([_added(request_id, sequence) for request_id, sequence in self._sequences.of_source("")])


def sync_endpoint(workers: EndpointId, model: str) -> EndpointId:
    """Where the routers of a model's workers serve their feeds."""
    return model_endpoint(workers, "router_sync", model)


def _added(request_id: str, sequence: ActiveSequence) -> SequenceAdded:
    hashes = hashes_to_bytes(sequence.hold.hashes)
    return SequenceAdded(
        request_id,
        sequence.worker,
        sequence.tokens,
        sequence.prefill_tokens,
        hashes,
        prefilled=0 < sequence.pending_prompt_tokens < sequence.tokens,
    )


def _parts(sequences: list[SequenceAdded]) -> Iterator[list[SequenceAdded]]:
    part: list[SequenceAdded] = []
    size_bytes = 0
    for added in sequences:
        size_bytes += len(added.hashes)
        if part and (len(part) == _PART_SEQUENCES or size_bytes > _PART_BYTES):
            yield part
            part, size_bytes = [], len(added.hashes)
        part.append(added)
    if part:
        yield part


def _mistake(added: SequenceAdded, block_size: int) -> str | None:
    """What is wrong with the names of a sequence's blocks."""
    blocks, rest = divmod(len(added.hashes), HASH_BYTES)
    if rest:
        return f"{len(added.hashes)} bytes are not a whole number of hashes"
    if blocks > added.tokens // block_size:
        return f"{added.tokens} tokens have no {blocks} full blocks"
    return None


def _key(instance_id: int, request_id: str) -> str:
    return f"{instance_id:x}/{request_id}"


_decode_event = payload_decoder(SequenceEvent)
_decode_part = payload_decoder(list[SequenceAdded])
