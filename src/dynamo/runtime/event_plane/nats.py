"""The event plane by way of NATS: a message passes its sender once, however many hear it.

Each instance of an endpoint has a subject, `dynamo.NAMESPACE.COMPONENT.ENDPOINT.INSTANCE`, the instance's id in
hexadecimal digits. Core NATS, nothing is stored.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable

from dynamo.errors import ConnectionLostError
from dynamo.runtime.background import kept_up
from dynamo.runtime.backoff import Backoff
from dynamo.runtime.event_plane.base import OnMessage, Part
from dynamo.runtime.event_plane.nats_connection import NatsConnection, NatsSubscription
from dynamo.runtime.event_plane.nats_servers import NatsServers
from dynamo.runtime.instance import EndpointId

logger = logging.getLogger(__name__)

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
OUTBOX_BYTES_MAX = 8 << 20
_MESSAGE_OVERHEAD_BYTES = 256
_LOOK_INTERVAL_S = 1.0  # how often one looks whether the connection lives, beside being told


def subject(endpoint: EndpointId, instance: str) -> str:
    """Where an instance speaks. The names of an endpoint have no character that means anything in a subject."""
    return f"dynamo.{endpoint}.{instance}"


class NatsPlane:
    """As EventPlane. Connects when there is something to send or to hear, and again whenever it has lost a server."""

    def __init__(self, servers: str, *, backoff_min_s: float = BACKOFF_MIN_S) -> None:
        """`servers` as NatsServers.parse() has them, whose ConfigError it raises."""
        self.connected = False
        self.connections = 0  # that there have been
        self.dropped = 0  # messages that could not be sent
        self._servers = NatsServers.parse(servers)
        self._backoff_min_s = backoff_min_s
        self._hearers: set[_Hearer] = set()
        self._repeaters: set[_Repeater] = set()
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._outbox_bytes = 0
        self._complained: set[str] = set()  # about what the log has had
        self._wake = asyncio.Event()  # there is something to do for the connection
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def publish(self, endpoint: EndpointId, instance_id: int, payload: bytes) -> None:
        """As EventPlane."""
        self._start()
        size_bytes = len(payload) + _MESSAGE_OVERHEAD_BYTES
        if not self.connected or self._outbox_bytes + size_bytes > OUTBOX_BYTES_MAX:
            self.dropped += 1
            return
        self._outbox.append((subject(endpoint, f"{instance_id:x}"), payload))
        self._outbox_bytes += size_bytes
        self._wake.set()

    def repeat(self, endpoint: EndpointId, instance_id: int, payload: Callable[[], bytes], interval_s: float) -> Part:
        """As EventPlane."""
        repeater = _Repeater(lambda: self.publish(endpoint, instance_id, payload()), interval_s, self._repeaters)
        self._start()
        if self.connected:
            repeater.start()
        return repeater

    def subscribe(self, endpoint: EndpointId, on_message: OnMessage, on_lost: Callable[[], None]) -> Part:
        """As EventPlane."""
        hearer = _Hearer(subject(endpoint, "*"), on_message, on_lost, self._on_hearer_closed)
        self._hearers.add(hearer)
        self._start()
        self._wake.set()
        return hearer

    async def close(self) -> None:
        """As EventPlane."""
        self._closed = True
        for repeater in tuple(self._repeaters):
            repeater.close()
        if self._task is not None:
            self._task.cancel()  # which may get lost in nats-py, and in wait_for() before Python 3.12
            self._wake.set()
            await asyncio.wait([self._task])

    def _start(self) -> None:
        if self._task is None and not self._closed:
            self._task = kept_up(self._run, f"nats-{self._servers}")

    async def _run(self) -> None:
        backoff = Backoff(self._backoff_min_s, BACKOFF_MAX_S)
        while not self._closed:
            before = self.connections
            try:
                await self._session()
                why = "the connection has ended"
            except ConnectionLostError as error:
                why = error.message
            if self._closed:
                return
            if self.connections > before:
                backoff.reset()
            self._complain("away", f"NATS at {self._servers}: {why}; what it would carry goes directly")
            await asyncio.sleep(backoff.next_s())

    async def _session(self) -> None:
        """From one connection's beginning to its end. Raises ConnectionLostError."""
        connection = await NatsConnection.open(self._servers, self._wake.set, self._on_error)
        try:
            for hearer in self._hearers:
                hearer.subscription = None  # it was the last connection's
            await self._attend(connection)
            self.connected = True
            self.connections += 1
            self._complained.clear()
            logger.info("NATS at %s carries events", self._servers)
            for repeater in self._repeaters:
                repeater.start()
            while connection.is_open and not self._closed:
                await _wait(self._wake, _LOOK_INTERVAL_S)
                self._wake.clear()
                await self._attend(connection)
        finally:
            self._disconnected()
            await connection.close()

    async def _attend(self, connection: NatsConnection) -> None:
        """Does what there is to do. Raises ConnectionLostError."""
        for hearer in tuple(self._hearers):
            if hearer.closed:
                self._hearers.discard(hearer)
                if hearer.subscription is not None:
                    await hearer.subscription.end()
            elif hearer.subscription is None:
                hearer.subscription = await connection.subscribe(hearer.subject, hearer.take)
        while self._outbox:
            to, payload = self._outbox.popleft()
            self._outbox_bytes -= len(payload) + _MESSAGE_OVERHEAD_BYTES
            if not await connection.send(to, payload):
                self.dropped += 1

    def _disconnected(self) -> None:
        was_connected, self.connected = self.connected, False
        self.dropped += len(self._outbox)
        self._outbox.clear()
        self._outbox_bytes = 0
        for repeater in self._repeaters:
            repeater.stop()
        if was_connected:
            for hearer in tuple(self._hearers):
                hearer.on_lost()

    def _on_hearer_closed(self, hearer: "_Hearer") -> None:
        if self.connected:
            self._wake.set()  # the server is to know
        else:
            self._hearers.discard(hearer)

    def _on_error(self, error: Exception) -> None:
        name = type(error).__name__
        self._complain(name, f"NATS at {self._servers}: {name}: {error}")

    def _complain(self, of: str, text: str) -> None:
        """Once of each, until there is a connection again."""
        if of not in self._complained:
            self._complained.add(of)
            logger.warning("%s", text)


class _Hearer:
    """A subscription, whether there is a connection or not."""

    def __init__(
        self, of: str, on_message: OnMessage, on_lost: Callable[[], None], on_close: "Callable[[_Hearer], None]"
    ) -> None:
        self.subject = of
        self.on_lost = on_lost
        self.subscription: NatsSubscription | None = None  # at the present connection
        self.closed = False
        self._on_message = on_message
        self._on_close = on_close

    def take(self, of: str, payload: bytes) -> None:
        """A message has come."""
        if self.closed:
            return
        try:
            instance_id = int(of.rpartition(".")[2], 16)
        except ValueError:
            return  # a stranger's
        try:
            self._on_message(instance_id, payload)
        except Exception:  # the task's boundary
            logger.exception("what instance %x has said on %s could not be used", instance_id, self.subject)

    def close(self) -> None:
        self.closed = True
        self._on_close(self)


class _Repeater:
    """Something that is said again and again while there is a connection."""

    def __init__(self, say: Callable[[], None], interval_s: float, among: "set[_Repeater]") -> None:
        """Adds itself to `among`, until it is closed."""
        self._say = say
        self._interval_s = interval_s
        self._among = among
        self._timer: asyncio.Handle | None = None
        among.add(self)

    def start(self) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_soon(self._fire)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        self.stop()
        self._among.discard(self)

    def _fire(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._fire)
        self._say()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
