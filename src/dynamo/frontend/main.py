"""`python -m dynamo.frontend`"""

import asyncio
import logging
import os
import socket
import ssl
import sys
from collections.abc import Sequence
from contextlib import aclosing

import uvicorn
import uvloop

from dynamo.config import parse
from dynamo.errors import ConfigError
from dynamo.frontend.app import create_app
from dynamo.frontend.config import FrontendConfig
from dynamo.frontend.descriptors import reserve_descriptors
from dynamo.frontend.fleet_watcher import WatchedFleets
from dynamo.frontend.http_protocol import http_protocol
from dynamo.frontend.http_socket import bind_http
from dynamo.frontend.key_ring import Anybody, Keys
from dynamo.frontend.load_keys import API_KEYS_VARIABLE, load_keys
from dynamo.frontend.state import Frontend
from dynamo.frontend.tracker import access_logger
from dynamo.frontend.traffic import serve_traffic
from dynamo.llm.artifacts import ArtifactCache
from dynamo.llm.model_cache import cache_dir
from dynamo.llm.model_manager import ModelManager
from dynamo.protocols.traffic import FRONTEND_COMPONENT, TRAFFIC_ENDPOINT
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.listening_socket import is_loopback
from dynamo.runtime.live_config import CONFIG_ENDPOINT, serve_config
from dynamo.runtime.parent import follow_parent
from dynamo.runtime.process import announce_ready, settle_memory
from dynamo.runtime.system_server import EmbeddedServer
from dynamo.runtime.worker import shutdown_on_signals
from dynamo.telemetry import logging as telemetry_logging
from dynamo.telemetry.metrics import FrontendMetrics

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    follow_parent()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # waking a thread pool costs more than most prompts take
    telemetry_logging.configure()
    telemetry_logging.leave_out_origins()
    config = parse(FrontendConfig, sys.argv[1:] if argv is None else argv, prog="python -m dynamo.frontend")
    try:
        uvloop.run(_serve(config))
    except ConfigError as error:
        logger.error("%s", error)
        return 1
    return 0


async def _serve(config: FrontendConfig) -> None:
    sock = bind_http(config)
    reserve_descriptors(config.connections_max)
    access_logger.disabled = not config.access_log
    runtime = DistributedRuntime(config=config)
    routing = config.routing(runtime.registry)
    models = ModelManager(
        runtime,
        namespace=config.namespace,
        routing=routing,
        cache=ArtifactCache(cache_dir() / "artifacts"),
    )
    frontend = Frontend(
        models=models,
        registry=runtime.registry,
        metrics=FrontendMetrics(runtime.registry),
        body_limit_bytes=config.body_limit_bytes(),
        keys=load_keys(config.api_keys_file, os.environ.get(API_KEYS_VARIABLE)),
        request_timeout_s=config.request_timeout_s,
        overload=config.overload,
    )
    if config.overload.watches_workers:
        frontend.fleets = WatchedFleets(runtime, config.overload, frontend.let_in)
    tls = config.tls()
    _warn_of_strangers(config, frontend.keys, tls)
    server = EmbeddedServer(
        uvicorn.Config(
            create_app(frontend),
            http=http_protocol(client_timeout_s=config.client_timeout_s, connections_max=config.connections_max),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=config.keep_alive_s,
            timeout_graceful_shutdown=max(1, round(config.shutdown_timeout_s)),
        ),
        tls,
    )
    with shutdown_on_signals(runtime):
        component = runtime.namespace(config.worker_namespace).component(FRONTEND_COMPONENT)
        await serve_config(component.endpoint(CONFIG_ENDPOINT), routing.disagg)
        await serve_traffic(component.endpoint(TRAFFIC_ENDPOINT), frontend)
        async with models.following() as follower, aclosing(frontend.fleets):
            serving = asyncio.create_task(server.serve(sockets=[sock]), name="http")
            stopping = asyncio.create_task(runtime.wait_for_shutdown())
            url = _url(sock, "http" if tls is None else "https")
            logger.info("OpenAI API on %s, process %d", url, os.getpid())
            settle_memory()
            announce_ready(url)
            await asyncio.wait({serving, stopping, follower}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await serving
            stopping.cancel()
        await runtime.close()
        if not follower.cancelled():
            follower.result()  # without it no model would ever be found again: the reason ends the process


def _warn_of_strangers(config: FrontendConfig, keys: Keys, tls: ssl.SSLContext | None) -> None:
    """What may not be meant so, where others than this host's programs can connect."""
    if is_loopback(config.http_host):
        return
    if isinstance(keys, Anybody):
        logger.warning("whoever can reach %s may use the API: --api-keys-file would ask for keys", config.http_host)
    elif tls is None:
        logger.warning("API keys and answers travel readable for all: use --tls-cert-path, or a proxy that speaks TLS")


def _url(sock: socket.socket, scheme: str) -> str:
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
