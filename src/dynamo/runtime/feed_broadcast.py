"""An event feed's way to many at once: over the event plane, which promises nothing.

Each message says which feed it is of and how far that has come, so that whoever misses something knows it with the
next message; one comes every second even if there is no event.
"""

import asyncio
from collections.abc import Iterator

import msgspec

from dynamo.runtime.codec import encode_payload
from dynamo.runtime.component import Endpoint

BEAT_S = 1.0
_EVENTS_MAX = 256  # in a message
_BYTES_MAX = 128 << 10  # of events in a message, unless it is one; NATS takes 1 MiB as it is set up by default


class Broadcast(msgspec.Struct, array_like=True, frozen=True):
    """The latest events of a feed, none in a beat."""

    feed_id: int
    last_id: int  # of the feed, and of the last one in here
    payloads: list[msgspec.Raw]

    @property
    def after(self) -> int:
        """The number of the event before the first in here."""
        return self.last_id - len(self.payloads)


class FeedBroadcaster:
    """Says what a feed publishes, if somebody carries it; events of one turn of the event loop share messages."""

    def __init__(self, endpoint: Endpoint, feed_id: int, last_id: int) -> None:
        """`endpoint` of the feed; `last_id` of the event that was published last."""
        self._endpoint = endpoint.id
        self._instance_id = endpoint.runtime.instance_id
        self._plane = endpoint.runtime.event_plane
        self._feed_id = feed_id
        self._last_id = last_id  # of the last event that is not among the unsent
        self._unsent: list[msgspec.Raw] = []
        self._beats = self._plane.repeat(self._endpoint, self._instance_id, self._beat, BEAT_S)

    def add(self, payload: msgspec.Raw) -> None:
        """The next event."""
        if not self._unsent:
            if not self._plane.connected:
                self._last_id += 1
                return
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(payload)

    def close(self) -> None:
        self._beats.close()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        for payloads in _portions(unsent):
            self._last_id += len(payloads)
            self._plane.publish(self._endpoint, self._instance_id, self._message(payloads))

    def _beat(self) -> bytes:
        return self._message([])

    def _message(self, payloads: list[msgspec.Raw]) -> bytes:
        return encode_payload(Broadcast(self._feed_id, self._last_id, payloads))


def _portions(payloads: list[msgspec.Raw]) -> Iterator[list[msgspec.Raw]]:
    """What goes into one message each; one event may be more than the bound."""
    portion: list[msgspec.Raw] = []
    size_bytes = 0
    for payload in payloads:
        size_bytes += len(memoryview(payload))
        if portion and (len(portion) == _EVENTS_MAX or size_bytes > _BYTES_MAX):
            yield portion
            portion, size_bytes = [], len(memoryview(payload))
        portion.append(payload)
    yield portion
