"""One process's part in a deployment: its identity, its planes, and how it starts and ends."""

import asyncio
import dataclasses
import logging
import os
import secrets
from typing import Any

from prometheus_client import CollectorRegistry

from dynamo.config import from_environment
from dynamo.errors import ConfigError, DrainingError, NotFoundError
from dynamo.runtime.channels import Channels
from dynamo.runtime.client import Client
from dynamo.runtime.component import Endpoint, Namespace
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.discovery.base import Discovery, Registration
from dynamo.runtime.discovery.file import FileDiscovery
from dynamo.runtime.discovery.memory import MemoryDiscovery, MemoryStore
from dynamo.runtime.health import Health
from dynamo.runtime.instance import EndpointId, Instance
from dynamo.runtime.request_plane.base import Listener, RequestPlane
from dynamo.runtime.request_plane.call import PayloadHandler
from dynamo.runtime.request_plane.inproc import InprocNetwork, InprocPlane
from dynamo.runtime.request_plane.tcp import TcpPlane
from dynamo.telemetry.metrics import ComponentMetrics
from dynamo.telemetry.process_metrics import ProcessMetrics

logger = logging.getLogger(__name__)

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
        self.discovery = _discovery(self.config, self.shared)
        self._plane = _request_plane(self.config, self.shared)
        self._channels = Channels(self._plane)
        self._handlers: dict[str, PayloadHandler] = {}
        self._listener: Listener | None = None
        self._listening = asyncio.Lock()
        self._registrations: list[Registration] = []
        self._announced: dict[str, Registration] = {}  # the endpoints', by path
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
        try:
            await self._announce(endpoint)
        except BaseException:
            del self._handlers[path]
            raise
        self.health.set_endpoint(path, serving=True)
        logger.info("serving %s as instance %x", path, self.instance_id)

    async def stop_serving(self, endpoint: EndpointId) -> None:
        """Takes no more calls to an endpoint; those under way go on. Does nothing when it is not served."""
        path = str(endpoint)
        registration = self._announced.pop(path, None)
        if registration is not None:
            self._registrations.remove(registration)
            del self._handlers[path]
            self.health.forget_endpoint(path)
            await registration.withdraw()

    async def register(self, key: str, value: bytes) -> Registration:
        """Makes a discovery entry that lives until this runtime begins to close; raises what serve() raises."""
        if self.is_shutting_down:
            raise DrainingError("this runtime is shutting down")
        registration = await self.discovery.register(key, value)
        self._registrations.append(registration)
        return registration

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

    async def _close_own(self, timeout_s: float) -> None:
        for path in self._handlers:
            self.health.set_endpoint(path, serving=False)
        for registration in tuple(self._registrations):  # stop_serving() may come in between
            await registration.withdraw()
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
        self._announced[str(endpoint)] = await self.register(instance.key, instance.encode())

    def _dispatch(self, path: str) -> PayloadHandler:
        handler = self._handlers.get(path)
        if handler is None:
            raise NotFoundError(f"this worker does not serve {path}")
        return handler


def _configured(
    config: RuntimeConfig | None, discovery_backend: str | None, request_plane: str | None
) -> RuntimeConfig:
    config = config or RuntimeConfig(**from_environment(RuntimeConfig, os.environ))
    if discovery_backend is not None:
        config = dataclasses.replace(config, discovery_backend=discovery_backend)
    if request_plane is not None:
        config = dataclasses.replace(config, request_plane=request_plane)
    return config


def _discovery(config: RuntimeConfig, shared: SharedParts) -> Discovery:
    match config.discovery_backend:
        case "mem" | "memory":
            return MemoryDiscovery(shared.store)
        case "file":
            return FileDiscovery(config.discovery_directory())
        case other:
            raise ConfigError(f"there is no discovery backend {other!r}: choose file or mem")


def _request_plane(config: RuntimeConfig, shared: SharedParts) -> RequestPlane:
    match config.request_plane:
        case "inproc":
            return InprocPlane(shared.network)
        case "tcp":
            return TcpPlane(
                config.rpc_host,
                config.rpc_port,
                advertised=config.advertised(),
                credentials=config.credentials(),
            )
        case other:
            raise ConfigError(f"there is no request plane {other!r}: choose tcp or inproc")
