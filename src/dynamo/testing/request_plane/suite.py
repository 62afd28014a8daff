"""All cases."""

from collections.abc import Awaitable, Callable

from dynamo.runtime.request_plane.base import RequestPlane
from dynamo.testing.request_plane import connections, endings, failures, flow, pushing, streams

Case = Callable[[RequestPlane], Awaitable[None]]

CASES: tuple[Case, ...] = (
    *streams.CASES,
    *failures.CASES,
    *flow.CASES,
    *endings.CASES,
    *pushing.CASES,
    *connections.CASES,
)
