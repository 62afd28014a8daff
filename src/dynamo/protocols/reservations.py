"""What a frontend tells a router service, `python -m dynamo.router`, of requests that it sends to workers itself."""

import msgspec

from dynamo.protocols.routing import Priority
from dynamo.tokens import TokenArray


class Reserve(msgspec.Struct, omit_defaults=True, kw_only=True, tag=0):
    """Asks for a worker. The answer is a stream:

    None, again and again, while the request waits for its turn; then a RoutingReport. From there on the request counts
    as that worker's load, until the caller ends the stream, by dying if need be.
    """

    request_id: str  # unique among all callers
    token_ids: TokenArray
    instances: list[int]  # that may serve it; the router may know of fewer, or of others that have come since
    pinned: bool = False  # these and no others: the client has named one
    dp_rank: int | None = None
    cache_salt: str | None = None
    priority: Priority = 0
    session_id: str | None = None
    prefilled: bool = False  # elsewhere: only load counts
    explain: bool = False  # whether the report names the candidates


class Prefilled(msgspec.Struct, omit_defaults=True, kw_only=True, tag=1):
    """The request's first token is there. The answer is empty; ids that are not known are passed over."""

    request_id: str
    cached_tokens: int | None = None  # of its prompt, that needed no prefill, as the engine says


class Look(msgspec.Struct, omit_defaults=True, kw_only=True, tag=2):
    """Asks what a reservation would find now, without consequences. The answer is a Prospect, if anybody may serve."""

    token_ids: TokenArray
    instances: list[int]
    dp_rank: int | None = None
    cache_salt: str | None = None
    session_id: str | None = None


ReservationMessage = Reserve | Prefilled | Look
