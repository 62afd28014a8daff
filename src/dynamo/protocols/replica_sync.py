"""What the routers of the same workers tell each other of the requests that they have sent."""

from typing import Annotated

import msgspec

from dynamo.protocols.generation import WorkerId

Count = Annotated[int, msgspec.Meta(ge=0)]


class SequenceAdded(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """A request has been sent to a worker. The parts of a dump are lists of these."""

    request_id: str  # unique within the router that tells it
    worker: WorkerId
    tokens: Count  # of its prompt, and in a dump of its answer so far
    prefill_tokens: Count  # that the worker has to compute; 0 once it has
    hashes: bytes = b""  # sequence hashes of the prompt's full blocks, in order; they travel as in protocols.kv_events
    prefilled: bool = False  # by another worker


class PrefillDone(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The request's first token is there."""

    request_id: str


class SequenceFreed(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """The request has ended."""

    request_id: str


SequenceEvent = SequenceAdded | PrefillDone | SequenceFreed
