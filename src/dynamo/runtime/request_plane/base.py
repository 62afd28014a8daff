"""The request plane: a process listens, others connect to it, and every call is a stream on that connection."""

from collections.abc import Collection
from typing import Annotated, Protocol

import msgspec

from dynamo.errors import DynamoError
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.call import Dispatcher
from dynamo.runtime.request_plane.reply import Reply

Port = Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]


class Address(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True):
    """Every way to reach an instance; a caller takes the best that works from where it is."""

    tcp_host: str | None = None
    tcp_port: Port | None = None
    unix: str | None = None  # name of an abstract Unix socket, good within `host_id` only
    inproc: str | None = None  # name of a listener in the same process
    host_id: str | None = None
    tls: bool = False  # whether the listener at tcp_port speaks TLS
    secret: str = ""  # proved, or shown, in the handshake: only those who can read discovery may call


class Channel(Protocol):
    """A connection to one instance."""

    @property
    def usable(self) -> bool:
        """Whether a call may be started: not on one that is lost, retired or stalled, nor if the other side drains."""
        ...

    @property
    def quiet(self) -> bool:
        """Whether the other side owes a sign of life for two beats or longer: it may be about to be judged."""
        ...

    @property
    def stalled(self) -> bool:
        """Whether the other side was judged to be silent, and has given no sign of life since."""
        ...

    @property
    def lost(self) -> bool:
        """Whether the connection is gone, and with it the calls that were under way."""
        ...

    def call(self, endpoint: str, payload: bytes, context: Context) -> Reply:
        """Starts a call; whatever goes wrong from here on is raised by the reply.

        Raises RequestTooLargeError when it does not fit into a frame, ValueError for a context that cannot travel.
        """
        ...

    def retire(self) -> None:
        """Starts no more calls, and closes when those under way have ended."""
        ...

    def beat(self, silence_max_s: float) -> int:
        """Asks for a sign of life; how often before that was done in a row without any.

        The other side may take this one for dead when it has not heard of it for `silence_max_s`.
        """
        ...

    def judge(self, beats_max: int) -> None:
        """If more beats than that have passed in silence: calls under way end with WorkerStalledError, at both ends.

        New ones are refused with UnreachableError until something comes from the other side.
        """
        ...

    async def close(self) -> None: ...


class Listener(Protocol):
    """The serving side of one instance."""

    address: Address

    async def drain(self, timeout_s: float) -> None:
        """Accepts no connections, tells callers to make no calls, and waits for those under way.

        After `timeout_s` it cancels them: their callers see DrainingError.
        """
        ...

    async def finish_calls(self, endpoints: Collection[str], timeout_s: float) -> None:
        """Waits for the calls to `endpoints` that are under way; after `timeout_s` they end as at drain()."""
        ...

    def end_calls(self, endpoint: str, error: DynamoError) -> None:
        """Cancels the calls to `endpoint` that are under way: their callers see `error`."""
        ...

    async def close(self) -> None: ...


class RequestPlane(Protocol):
    """One transport. Implementations are tested by `dynamo.testing.request_plane`."""

    async def listen(self, dispatch: Dispatcher) -> Listener: ...

    async def connect(self, address: Address) -> Channel:
        """Raises ConnectionLostError when the instance cannot be reached."""
        ...
