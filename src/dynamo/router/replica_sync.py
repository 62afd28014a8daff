"""Routers of the same workers share their load: what each has sent counts with the others too.

Best effort: a router that does not hear of a request for a moment decides without it. Each serves a feed of its own
requests and follows those of the others; one that has gone takes its requests with it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import TypeVar

import msgspec

from dynamo.errors import DynamoError
from dynamo.protocols.replica_sync import PrefillDone, SequenceAdded, SequenceEvent, SequenceFreed
from dynamo.router.sequences import ActiveSequence, ActiveSequences
from dynamo.router.subscriber import FeedSubscriber
from dynamo.runtime.codec import PAYLOAD_ERRORS, payload_decoder
from dynamo.runtime.component import Endpoint
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.event_feed import EventFeed, FeedItem
from dynamo.runtime.instance import EndpointId

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PART = 1024  # sequences in a part of a dump


class ReplicaSync:
    """One router's part in it. Closed by close()."""

    def __init__(
        self,
        runtime: DistributedRuntime,
        workers: EndpointId,
        model: str,
        sequences: ActiveSequences,
        now_s: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        """Routers of the same endpoint of workers and the same model find each other.

        `sequences` are this router's, to which those of the others are added; `on_change` is told of it.
        """
        self._sequences = sequences
        self._now_s = now_s
        self._on_change = on_change
        self._feed = EventFeed(self._dump)
        self._endpoint = Endpoint(runtime, sync_endpoint(workers, model))
        self._client = runtime.client(self._endpoint.id, FeedItem)
        self._subscriber = FeedSubscriber(self._client, self, own_id=runtime.instance_id)
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
        event = _decoded(_decode_event, instance_id, payload)
        if isinstance(event, SequenceAdded):
            self._add(instance_id, event)
        elif isinstance(event, PrefillDone):
            self._sequences.first_token(_key(instance_id, event.request_id), self._now_s())
        elif isinstance(event, SequenceFreed):
            self._sequences.free(_key(instance_id, event.request_id))
        self._on_change()

    def replace_payloads(self, instance_id: int, payloads: Iterable[msgspec.Raw]) -> None:
        """As FeedSink."""
        self._sequences.drop_source(str(instance_id))
        for payload in payloads:
            for added in _decoded(_decode_part, instance_id, payload) or ():
                self._add(instance_id, added)
        self._on_change()

    def forget(self, instance_id: int) -> None:
        """As FeedSink."""
        self._sequences.drop_source(str(instance_id))
        self._on_change()

    async def _start(self) -> None:
        try:
            await self._feed.start(self._endpoint)
        except (DynamoError, ValueError) as error:  # others do without this router's load
            logger.warning("this router's load is not shared: %s", error)

    def _add(self, instance_id: int, added: SequenceAdded) -> None:
        self._sequences.add(
            _key(instance_id, added.request_id),
            added.worker,
            prompt_tokens=added.tokens,
            prefill_tokens=added.prefill_tokens,
            now_s=self._now_s(),
            source=str(instance_id),
        )

    def _dump(self) -> list[list[SequenceAdded]]:
        own = [_added(request_id, sequence) for request_id, sequence in self._sequences.of_source("")]
        return [own[i : i + _PART] for i in range(0, len(own), _PART)]


def sync_endpoint(workers: EndpointId, model: str) -> EndpointId:
    """Where the routers of a model's workers serve their feeds."""
    slug = sha256(model.encode()).hexdigest()[:16]  # a name may hold any character
    return workers.beside(f"{workers.name}_router_sync_{slug}")


def _added(request_id: str, sequence: ActiveSequence) -> SequenceAdded:
    return SequenceAdded(request_id, sequence.worker, sequence.tokens, sequence.prefill_tokens)


def _key(instance_id: int, request_id: str) -> str:
    return f"{instance_id:x}/{request_id}"


def _decoded(decode: Callable[[msgspec.Raw], T], instance_id: int, payload: msgspec.Raw) -> T | None:
    try:
        return decode(payload)
    except PAYLOAD_ERRORS as error:
        logger.warning("router %x says of its load what makes no sense: %s", instance_id, error)
        return None


_decode_event = payload_decoder(SequenceEvent)
_decode_part = payload_decoder(list[SequenceAdded])
