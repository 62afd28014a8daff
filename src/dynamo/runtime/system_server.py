"""/health, /live and /metrics of a process that is not a frontend."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dynamo.runtime.acceptor import Acceptor
from dynamo.runtime.health import Health
from dynamo.runtime.listening_socket import bind
from dynamo.telemetry.metrics import CONTENT_TYPE

logger = logging.getLogger(__name__)

_LAST_WORDS_S = 1.0  # how long clients may take over their errors when the server could not wait for their answers
_POLL_S = 0.02


def system_app(health: Health, registry: CollectorRegistry) -> Starlette:
    async def get_health(_: Request) -> Response:
        body = {
            "status": "healthy" if health.ready else "unhealthy",
            "uptime_s": round(health.uptime_s, 3),
            "endpoints": {path: "ready" if ready else "not ready" for path, ready in health.endpoints.items()},
        }
        return JSONResponse(body, status_code=200 if health.ready else 503)

    async def get_live(_: Request) -> Response:
        return JSONResponse({"status": "live", "uptime_s": round(health.uptime_s, 3)})

    async def get_metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE)

    return Starlette(
        routes=[Route("/health", get_health), Route("/live", get_live), Route("/metrics", get_metrics)],
    )


@contextlib.asynccontextmanager
async def system_server(
    health: Health, registry: CollectorRegistry, *, host: str, port: int
) -> AsyncIterator[int | None]:
    """Serves system_app() within the block; gives the port, or None when `port` is negative (turned off).

    Raises ConfigError when the port cannot be bound.
    """
    if port < 0:
        yield None
        return
    sock = bind(host, port)
    bound_port: int = sock.getsockname()[1]
    config = uvicorn.Config(system_app(health, registry), log_config=None, access_log=False, lifespan="off")
    server = EmbeddedServer(config)
    task = asyncio.create_task(server.serve(sockets=[sock]), name="system-server")
    logger.info("system server on http://%s:%d", host, bound_port)
    try:
        yield bound_port
    finally:
        server.should_exit = True
        await task


class EmbeddedServer(uvicorn.Server):
    """uvicorn in a program that handles its signals itself, and that ends whatever its clients do.

    It takes over the sockets that serve() is given; without any it listens to nobody.
    """

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(config)
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """In place of uvicorn's, whose servers accept one connection in a turn of the event loop."""
        await self.lifespan.startup()
        self.servers = []
        self._acceptors = [Acceptor(sock, self._make_protocol, self._tls) for sock in sockets or ()]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and then lets go of clients that do not take what has been said to them."""
        for acceptor in self._acceptors:
            await acceptor.stop()
        await super().shutdown(sockets)
        state = self.server_state
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                while state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
                    await asyncio.sleep(_POLL_S)
        for connection in tuple(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=_LAST_WORDS_S)

    def _make_protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield
