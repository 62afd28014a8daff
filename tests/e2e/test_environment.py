"""What surrounds a process: ports that are taken, variables made for upstream, directories that cannot be used."""

import asyncio
import socket
import time
from pathlib import Path

import pytest

from dynamo.runtime.process import READY
from dynamo.testing.deployment import START_S, Deployment

from .raw_http import get, post
from .served import until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

FRONTEND = ("-m", "dynamo.frontend", "--http-port", "0")


def echo(model: Path, *flags: str) -> tuple[str, ...]:
    return ("-m", "dynamo.echo", "--model-path", str(model), "--model-name", "m", *flags)


HELPS = {
    "frontend": ("dynamo.frontend",),
    "mocker": ("dynamo.mocker",),
    "echo": ("dynamo.echo",),
    "vllm": ("dynamo.vllm",),
    "dynamo": ("dynamo.cli.main",),
    "serve": ("dynamo.cli.main", "serve"),
    "run": ("dynamo.cli.main", "run"),
}


@pytest.mark.alone
@pytest.mark.parametrize("command", HELPS.values(), ids=HELPS.keys())
async def test_help_is_quick_and_needs_nothing(own: Deployment, command: tuple[str, ...]) -> None:
    started_s = time.monotonic()
    nowhere = {"DYN_FILE_KV": "/proc/nowhere", "DYN_CACHE_DIR": "/proc/nowhere", "HOME": "/proc/nowhere"}
    process = await own.python("-m", *command, "--help", environ=nowhere)
    assert await process.exit_code() == 0
    assert time.monotonic() - started_s < 3  # on an idle machine it is under one
    assert "usage: " in process.output
    assert not own.discovery.exists()


async def test_port_in_use(own: Deployment, tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        commands = (
            ("-m", "dynamo.frontend", "--http-port", port),
            echo(tiny_model, "--system-port", port),
            echo(tiny_model, "--rpc-port", port),
        )
        for process in [await own.python(*command) for command in commands]:
            assert await process.exit_code(START_S) == 1
            assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in process.output
            assert "Traceback" not in process.output
            assert READY not in process.output
    assert not own.discovery.exists() or not list(own.discovery.iterdir())


FRONTEND_MISTAKES = [
    (("--http-port", "70000"), 1, "70000 is not a port"),
    (("--http-host", "no such host"), 1, "cannot listen on no such host"),
    (("--http-host", "192.0.2.1"), 1, "cannot listen on 192.0.2.1:0: Cannot assign requested address"),
    (("--http-body-limit-mb", "0"), 1, "--http-body-limit-mb must be"),
    (("--file-kv", "/dev/null"), 1, "cannot use the discovery directory /dev/null"),
    (("--discovery-backend", "etcd", "--etcd-endpoints", "nowhere"), 1, "an endpoint of etcd is written http://"),
    (("--no-such-flag",), 2, "unrecognized arguments: --no-such-flag"),
]
WORKER_MISTAKES = [
    (("--model-path", "/proc/nowhere"), 1, "no model '/proc/nowhere'"),
    (("--model-path", "/proc"), 1, "/proc is not a model directory"),
    (("--namespace", "a/b"), 1, "an endpoint is written namespace.component.endpoint"),
    (("--file-kv", "/dev/null"), 1, "cannot use the discovery directory /dev/null"),
]


async def test_processes_that_cannot_start(own: Deployment, tiny_model: Path) -> None:
    async def attempt(arguments: tuple[str, ...], code: int, reason: str) -> None:
        process = await own.python(*arguments)
        assert await process.exit_code(START_S) == code, process.output
        assert reason in process.output
        assert "Traceback" not in process.output

    frontends = [attempt((*FRONTEND, *flags), code, reason) for flags, code, reason in FRONTEND_MISTAKES]
    workers = [attempt(echo(tiny_model, *flags), code, reason) for flags, code, reason in WORKER_MISTAKES]
    await asyncio.gather(*frontends, *workers)
    assert not own.discovery.exists() or not list(own.discovery.iterdir())


async def test_variables_made_for_upstream(own: Deployment, tiny_model: Path) -> None:
    environ = {
        "DYN_REQUEST_PLANE": "nats",
        "DYN_DISCOVERY_BACKEND": "kubernetes",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_LOG": "warn,dynamo=info,dynamo_llm::kv=loud",
        "DYN_HTTP_PORT": "abc",
        "DYN_SYSTEM_PORT": "many",
        "DYN_ROUTER_MODE": "kv",
        "DYN_SYSTEM_ENABLED": "perhaps",
        "DYN_GRACEFUL_SHUTDOWN_TIMEOUT": "soon",
        "ETCD_ENDPOINTS": "http://nowhere:2379",
        "NATS_SERVER": "nats://nowhere:4222",
    }
    (frontend, url), worker = await asyncio.gather(
        own.frontend(environ=environ), own.python(*echo(tiny_model, "--delay-ms", "0"), environ=environ)
    )
    await until_served(url, 1)
    assert (await post(url, "/v1/completions", {"model": "m", "prompt": "Hello"})).status == 200
    for process in (frontend, worker):
        for variable in ("DYN_REQUEST_PLANE", "DYN_DISCOVERY_BACKEND", "DYN_SYSTEM_PORT"):
            assert f"{variable}=" in await process.line(variable)
        assert "'dynamo_llm::kv=loud' is not a level" in process.output
        assert "Traceback" not in process.output
    assert "DYN_HTTP_PORT='abc' is not usable" in frontend.output


async def test_silent_log(own: Deployment) -> None:
    frontend, url = await own.frontend(environ={"DYN_LOG": "off"})
    assert (await get(url, "/live")).status == 200
    assert (await post(url, "/v1/completions", {"model": "m", "prompt": "x"})).status == 503
    assert frontend.output == f"{READY}{url}"


async def test_system_server_of_a_worker(own: Deployment, tiny_model: Path) -> None:
    worker = await own.echo(tiny_model, "m", "--system-port", "0")
    url = (await worker.line("system server on")).partition(" on ")[2]
    health = await get(url, "/health")
    assert health.status == 200
    assert health.json()["endpoints"]["dynamo.backend.generate"] == "ready"
    assert (await get(url, "/live")).status == 200
    assert (await get(url, "/metrics")).status == 200


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
async def test_frontend_on_ipv6(own: Deployment) -> None:
    _, url = await own.frontend("--http-host", "::1")
    assert url.startswith("http://[::1]:")
    assert (await get(url, "/live")).status == 200
