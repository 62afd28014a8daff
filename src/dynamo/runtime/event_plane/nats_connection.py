"""One connection to a NATS server by nats-py, from its beginning to its end.

nats-py would find its way back by itself; but while it does, it keeps what is published, and nobody could say what of
that is still worth sending. So a connection ends when it breaks, and who needs one makes another.
"""

import asyncio
import contextlib
from collections.abc import Callable

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.errors import Error, SecureConnRequiredError

from dynamo.errors import ConnectionLostError, UnreachableError
from dynamo.runtime.event_plane.nats_servers import NatsServers

CONNECT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 1.0
_PING_INTERVAL_S = 2  # a server that hangs is given up after three of them
_FLUSH_TIMEOUT_S = 2
_MESSAGE_BYTES_MAX = 1 << 20
_UNSENT_BYTES_MAX = 1 << 20
_NEVER_REACHED_BYTES = 4 << 20  # where nats-py would wait for as long as it takes
_UNREAD_BYTES_MAX = 8 << 20
_UNREAD_MESSAGES_MAX = 8192


class _Client(Client):
    """nats-py's client, which sends nothing unencrypted where TLS is wanted, and can be cut off."""

    def __init__(self, *, tls: bool) -> None:
        super().__init__()
        self._tls_wanted = tls

    def _connect_command(self) -> bytes:
        # The server says whether there is TLS, and whoever is in between could say that there is none.
        if self._tls_wanted and not self._server_info.get("tls_required"):
            raise SecureConnRequiredError
        return super()._connect_command()

    def abort(self) -> None:
        """Whatever it waits for at the socket ends."""
        transport = self._transport
        if isinstance(transport, TcpTransport) and transport._io_writer is not None:
            transport._io_writer.transport.abort()


class NatsConnection:
    """A connection that was made by open()."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    @classmethod
    async def open(
        cls, servers: NatsServers, on_close: Callable[[], None], on_error: Callable[[Exception], None]
    ) -> "NatsConnection":
        """Raises UnreachableError.

        `on_close` is called when the connection has broken, `on_error` for what does not break it: a permission that
        is missing, and messages that came faster than they were taken and are lost.
        """
        client = _Client(tls=servers.tls)
        opened = False
        last: Exception | None = None

        async def closed() -> None:
            on_close()

        async def failed(error: Exception) -> None:
            nonlocal last
            last = error
            if opened:
                on_error(error)

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await client.connect(
                    list(servers.urls),
                    name="dynamo",
                    error_cb=failed,
                    disconnected_cb=closed,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,  # each server is tried twice, and then this gives up
                    reconnect_time_wait=0,
                    pending_size=_NEVER_REACHED_BYTES,
                    ping_interval=_PING_INTERVAL_S,
                    user=servers.user,
                    password=servers.password,
                    token=servers.token,
                )
        except (Error, OSError, TimeoutError, ValueError) as error:  # a line that is too long is a ValueError
            await _end(client)
            raise UnreachableError(str(last or error) or type(last or error).__name__) from error
        except BaseException:
            await _end(client)
            raise
        opened = True
        return cls(client)

    @property
    def is_open(self) -> bool:
        return self._client.is_connected

    async def send(self, subject: str, payload: bytes) -> bool:
        """Whether the message is on its way: not one that the server would not take.

        Waits while too much is under way. Raises ConnectionLostError.
        """
        client = self._client
        if len(payload) > min(client.max_payload, _MESSAGE_BYTES_MAX):
            return False
        try:
            if client.pending_data_size + len(payload) > _UNSENT_BYTES_MAX:
                await client.flush(_FLUSH_TIMEOUT_S)
            await client.publish(subject, payload)
        except Error as error:
            raise ConnectionLostError(str(error)) from error
        return True

    async def subscribe(self, subject: str, on_message: Callable[[str, bytes], None]) -> "NatsSubscription":
        """`on_message` is given the subject and the payload of each message. Raises ConnectionLostError."""

        async def take(message: Msg) -> None:
            on_message(message.subject, message.data)

        try:
            return NatsSubscription(
                await self._client.subscribe(
                    subject, cb=take, pending_msgs_limit=_UNREAD_MESSAGES_MAX, pending_bytes_limit=_UNREAD_BYTES_MAX
                )
            )
        except Error as error:
            raise ConnectionLostError(str(error)) from error

    async def close(self) -> None:
        """Takes a second at most; idempotent."""
        await _end(self._client)


class NatsSubscription:
    """One that NatsConnection.subscribe() has made."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def end(self) -> None:
        with contextlib.suppress(Error):  # the connection has just broken
            await self._subscription.unsubscribe()


async def _end(client: _Client) -> None:
    with contextlib.suppress(Error, OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await client.close()
    client.abort()
