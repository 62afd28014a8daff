"""One process's part in a deployment: its identity, its planes, and how it starts and ends."""

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Collection
from typing import Any

from prometheus_client import CollectorRegistry

from dynamo.config import parse
from dynamo.errors import DrainingError, NotFoundError, UnavailableError, WorkerStalledError
from dynamo.runtime.background import kept_up
from dynamo.runtime.channels import NO_HEARTBEAT, Channels
from dynamo.runtime.client import Client
from dynamo.runtime.component import Endpoint, Namespace
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.discovery.base import Registration
from dynamo.runtime.discovery.make import make_discovery
from dynamo.runtime.discovery.memory import MemoryStore
from dynamo.runtime.event_plane.make import make_event_plane
from dynamo.runtime.health import Health
from dynamo.runtime.instance import EndpointId, Instance
from dynamo.runtime.request_plane.base import Listener
from dynamo.runtime.request_plane.call import PayloadHandler
from dynamo.runtime.request_plane.inproc import InprocNetwork
from dynamo.runtime.request_plane.make import make_request_plane
from dynamo.runtime.watchdog import Subject, Watchdog
from dynamo.telemetry.metrics import ComponentMetrics
from dynamo.telemetry.process_metrics import ProcessMetrics

logger = logging.getLogger(__name__)

_WITHDRAW_S = 5.0
_INSTANCE_ID_BITS = 53  # so that JSON readers which use floats see it exactly


@dataclasses.dataclass(slots=True)
class SharedParts:
    """What several runtimes of one process have in common."""

    store: MemoryStore = dataclasses.field(default_factory=MemoryStore)
    network: InprocNetwork = dataclasses.field(default_factory=InprocNetwork)
    registry: CollectorRegistry = dataclasses.field(default_factory=CollectorRegistry)
    metrics: ComponentMetrics = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.metrics = ComponentMetrics(self.registry)
        ProcessMetrics(self.registry)


class DistributedRuntime:
    """Serves endpoints and calls those of others. A process has one, or one per worker that it simulates.

    `DistributedRuntime()` takes its settings from the DYN_* environment; it needs a running event loop. `event_loop` is
    accepted for upstream's programs and has no effect.
    """

    def __init__(
        self,
        event_loop: asyncio.AbstractEventLoop | None = None,
        discovery_backend: str | None = None,
        request_plane: str | None = None,
        *,
        config: RuntimeConfig | None = None,
        shared: SharedParts | None = None,
    ) -> None:
        self.config = _configured(config, discovery_backend, request_plane)
        self.shared = shared or SharedParts()
        self.instance_id = secrets.randbits(_INSTANCE_ID_BITS)
        self.health = Health()
        self.discovery = make_discovery(self.config, self.shared.store)
        self.event_plane = make_event_plane(self.config.event_plane, self.config.nats_server)
        self._is_sibling = False
        self._plane = make_request_plane(self.config, self.shared.network)
        within_process = self.config.request_plane == "inproc"  # where all share the fate of one event loop
        self._channels = Channels(self._plane, NO_HEARTBEAT if within_process else self.config.heartbeat)
        self._handlers: dict[str, PayloadHandler] = {}
        self._listener: Listener | None = None
        self._listening = asyncio.Lock()
        self._registrations: dict[str, Registration] = {}  # by key
        self._announced: dict[str, str] = {}  # the endpoints' keys, by path
        self._suspended: dict[str, str] = {}  # why those are not announced now, by path
        self._left: set[str] = set()  # paths: who does not know yet may still call
        self._watchdogs: dict[asyncio.Task[None], str] = {}  # and what each watches, a path
        self._clients: set[Client] = set()
        self._siblings: list[DistributedRuntime] = []
        self._shutdown = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics of this process."""
        return self.shared.registry

    def sibling(self) -> "DistributedRuntime":
        """Another runtime in this process, with an identity of its own; it is closed with this one."""
        sibling = DistributedRuntime(config=self.config, shared=self.shared)
        sibling.health = self.health
        sibling.event_plane = self.event_plane  # a process needs one connection
        sibling._is_sibling = True
        self._siblings.append(sibling)
        if self.is_shutting_down:
            sibling.shutdown()
        return sibling

    def namespace(self, name: str) -> Namespace:
        return Namespace(self, name)

    def endpoint(self, path: str) -> Endpoint:
        """The endpoint at "namespace.component.endpoint"; ValueError for another form."""
        return Endpoint(self, EndpointId.parse(path))

    def client(self, endpoint: EndpointId, response_type: Any = Any) -> Client:
        """See Endpoint.client()."""
        client = Client(endpoint, self.discovery, self._channels, response_type, self._clients.discard)
        self._clients.add(client)
        return client

    async def serve(self, endpoint: EndpointId, handler: PayloadHandler) -> None:
        """Serves an endpoint and announces it.

        Raises ValueError when it is served already, ConfigError when it cannot be announced, DrainingError when the
        runtime is shutting down.
        """
        path = str(endpoint)
        if self.is_shutting_down:
            raise DrainingError("this runtime is shutting down")
        if path in self._handlers:
            raise ValueError(f"{path} is already served by this runtime")
        self._handlers[path] = handler
        self._left.discard(path)
        try:
            await self._announce(endpoint)
        except BaseException:
            self._handlers.pop(path, None)
            raise
        logger.info("serving %s as instance %x", path, self.instance_id)

    async def stop_serving(self, endpoint: EndpointId) -> None:
        """Takes no more calls to an endpoint; those under way go on. Does nothing when it is not served."""
        path = str(endpoint)
        if self._handlers.pop(path, None) is not None:
            self._suspended.pop(path, None)
            self.health.forget_endpoint(path)
            await self._withdraw(path)

    async def leave(self, namespace: str, component: str, timeout_s: float) -> None:
        """Serves the endpoints of a component no more, with what shutdown() promises to their callers.

        They leave discovery; then new calls are refused with DrainingError, until the endpoint is served again, and
        those under way may go on for `timeout_s`, after which they end with that error.
        """
        paths = [path for path in self._handlers if path.startswith(f"{namespace}.{component}.")]
        await self._end_watchdogs([task for task, path in self._watchdogs.items() if path in paths])
        await asyncio.gather(*map(self._withdraw, paths))
        self._left.update(paths)
        for path in paths:
            self.health.set_endpoint(path, serving=False)
        if self._listener is not None:
            await self._listener.finish_calls(paths, timeout_s)
        for path in paths:
            self._handlers.pop(path, None)
            self._suspended.pop(path, None)
            self.health.forget_endpoint(path)

    async def suspend(self, endpoint: EndpointId, reason: str) -> None:
        """Takes an endpoint that cannot serve out of discovery, until resume().

        Its calls under way end with WorkerStalledError, new ones are refused with UnavailableError: others may serve
        them.
        """
        path = str(endpoint)
        if path not in self._handlers:
            return
        self._suspended[path] = reason
        self.health.set_endpoint(path, serving=False)
        if self._listener is not None:
            self._listener.end_calls(path, WorkerStalledError(reason))
        await self._withdraw(path)

    async def resume(self, endpoint: EndpointId) -> None:
        """Serves an endpoint again that was suspended. Raises ConfigError when it cannot be announced."""
        path = str(endpoint)
        if self.is_shutting_down or (reason := self._suspended.pop(path, None)) is None:
            return
        try:
            await self._announce(endpoint)  # from its first moment on somebody may call
        except BaseException:
            if path in self._handlers:
                self._suspended[path] = reason
            raise

    def watch(self, endpoint: EndpointId, subject: Subject, reason: str) -> None:
        """Suspends the endpoint whenever `subject`, which stands behind it, makes no progress, for as long as that."""
        config = self.config
        if config.engine_stall_timeout_s <= 0:
            return

        async def on_stall() -> None:
            logger.error("%s: %s", endpoint, reason)
            await self.suspend(endpoint, reason)

        async def on_recovery() -> None:
            await self.resume(endpoint)
            logger.info("%s is served again", endpoint)

        watchdog = Watchdog(
            subject,
            on_stall,
            on_recovery,
            canary_interval_s=config.canary_interval_s,
            stall_s=config.engine_stall_timeout_s,
        )
        self._watchdogs[kept_up(watchdog.run, f"watchdog-{endpoint}")] = str(endpoint)

    async def register(self, key: str, value: bytes) -> Registration:
        """Makes a discovery entry that lives until this runtime begins to close; raises what serve() raises."""
        if self.is_shutting_down:
            raise DrainingError("this runtime is shutting down")
        registration = await self.discovery.register(key, value)
        if self.is_shutting_down:  # since then: all others are withdrawn already, perhaps
            await registration.withdraw()
            raise DrainingError("this runtime is shutting down")
        self._registrations[key] = registration
        return registration

    async def unregister(self, key: str) -> None:
        """Takes back what was registered under `key`; does nothing when there is nothing."""
        if (registration := self._registrations.pop(key, None)) is not None:
            await registration.withdraw()

    @property
    def is_shutting_down(self) -> bool:
        return self._shutdown.is_set()

    def set_health_status(self, ready: bool) -> None:
        self.health.set_ready(ready)

    def shutdown(self) -> None:
        """Asks the runtime and its siblings to end: served endpoints return from serve_endpoint() when drained."""
        for runtime in (self, *self._siblings):
            runtime._shutdown.set()

    async def wait_for_shutdown(self) -> None:
        await self._shutdown.wait()

    async def close(self, *, graceful: bool = True) -> None:
        """Withdraws what was announced, lets requests under way finish, closes everything; idempotent."""
        self.shutdown()
        if self._closing is None:
            timeout_s = self.config.shutdown_timeout_s if graceful else 0.0
            self._closing = asyncio.create_task(self._close(timeout_s), name="runtime-close")
        await asyncio.shield(self._closing)

    async def _close(self, timeout_s: float) -> None:
        await asyncio.gather(self._close_own(timeout_s), *(s._close_own(timeout_s) for s in self._siblings))
        if not self._is_sibling:
            await self.event_plane.close()

    async def _close_own(self, timeout_s: float) -> None:
        for path in self._handlers:
            self.health.set_endpoint(path, serving=False)
        watchdogs = asyncio.create_task(self._end_watchdogs(list(self._watchdogs)))
        await self._withdraw_all()
        await watchdogs
        if self._listener is not None:
            await self._listener.drain(timeout_s)
            await self._listener.close()
        for client in tuple(self._clients):
            await client.close()
        await self._channels.close()
        await self.discovery.close()

    async def _announce(self, endpoint: EndpointId) -> None:
        async with self._listening:
            if self._listener is None:
                self._listener = await self._plane.listen(self._dispatch)
        instance = Instance(
            instance_id=self.instance_id,
            namespace=endpoint.namespace,
            component=endpoint.component,
            endpoint=endpoint.name,
            address=self._listener.address,
        )
        path = str(endpoint)
        await self.register(instance.key, instance.encode())
        self._announced[path] = instance.key
        if path in self._handlers:
            self.health.set_endpoint(path, serving=True)
        else:  # stop_serving() has come in between
            await self._withdraw(path)

    async def _withdraw(self, path: str) -> None:
        if (key := self._announced.pop(path, None)) is not None:
            await self.unregister(key)

    async def _end_watchdogs(self, watchdogs: Collection[asyncio.Task[None]]) -> None:
        for watchdog in watchdogs:
            self._watchdogs.pop(watchdog, None)
            watchdog.cancel()
        await asyncio.gather(*watchdogs, return_exceptions=True)

    async def _withdraw_all(self) -> None:
        """A discovery backend that does not answer must not hold up the end: callers are told by the listener too."""
        try:
            async with asyncio.timeout(_WITHDRAW_S):
                await asyncio.gather(*(registration.withdraw() for registration in tuple(self._registrations.values())))
        except TimeoutError:
            logger.warning("discovery has not taken back everything that was announced")

    def _dispatch(self, path: str) -> PayloadHandler:
        if path in self._left:
            raise DrainingError(f"this worker does not serve {path} any more")
        if (reason := self._suspended.get(path)) is not None:
            raise UnavailableError(reason)
        handler = self._handlers.get(path)
        if handler is None:
            raise NotFoundError(f"this worker does not serve {path}")
        return handler


def _configured(
    config: RuntimeConfig | None, discovery_backend: str | None, request_plane: str | None
) -> RuntimeConfig:
    config = config or parse(RuntimeConfig, [], prog="dynamo")
    if discovery_backend is not None:
        config = dataclasses.replace(config, discovery_backend=discovery_backend)
    if request_plane is not None:
        config = dataclasses.replace(config, request_plane=request_plane)
    return config
