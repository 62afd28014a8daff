"""`dynamo serve`: the processes of one host, supervised."""

import asyncio
import json
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Sequence

from dynamo.cli.deployment import Deployment, ServeConfig
from dynamo.cli.frontend_api import reachable_url, read_figures, serves
from dynamo.cli.process import Child
from dynamo.cli.status import StatusLine
from dynamo.config import build_parser, from_namespace
from dynamo.engines.make import check_engine
from dynamo.errors import ConfigError
from dynamo.frontend.http_socket import bind_http
from dynamo.llm.model_card import default_name
from dynamo.llm.model_source import resolve_model
from dynamo.protocols.model_card import WorkerType

PROG = "dynamo serve"
_STATUS_INTERVAL_S = 1.0
_SERVED_POLL_S = 0.1
_STOP_MARGIN_S = 5.0


def main(argv: Sequence[str]) -> int:
    try:
        deployment = _prepare(*_parse(argv))
    except ConfigError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while the model was being fetched
        return 130
    return asyncio.run(_supervise(deployment))


def _parse(argv: Sequence[str]) -> tuple[ServeConfig, str, list[str]]:
    argv = list(argv)
    own, worker_flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = build_parser(
        ServeConfig,
        prog=PROG,
        epilog="What follows -- goes to the workers, as in: dynamo serve -- --max-model-len 1024",
    )
    parser.add_argument(
        "model", nargs="?", default="smollm2", metavar="MODEL", help="smollm2 (default), a directory or a hub name"
    )
    namespace = parser.parse_args(own)
    try:
        config = from_namespace(ServeConfig, namespace)
    except ConfigError as error:
        parser.error(str(error))
    if config.discovery_backend == "mem":
        parser.error("--discovery-backend mem works within one process only, and this starts several")
    if config.request_plane == "inproc":
        parser.error("--request-plane inproc works within one process only, and this starts several")
    return config, namespace.model, worker_flags


def _prepare(config: ServeConfig, model: str, worker_flags: Sequence[str]) -> Deployment:
    """Fetches the model once, before several workers would try to at the same time.

    That can take long, so a port that is in use is found before.
    """
    check_engine(config.engine)
    bind_http(config).close()
    model_dir = resolve_model(model, weights=config.engine == "vllm")
    return Deployment(
        config=config,
        model_name=config.model_name or default_name(model),
        model_dir=str(model_dir),
        worker_flags=worker_flags,
    )


async def _supervise(deployment: Deployment) -> int:
    """The exit code: 0 after a signal, 1 when a process could not be started."""
    children: list[Child] = []
    status = StatusLine(children)
    environ = os.environ | deployment.environ()
    children += [Child(name, command, environ, status.log) for name, command in deployment.commands().items()]
    stop = asyncio.Event()
    _on_signals(stop, children)
    running = [asyncio.create_task(child.run(), name=child.name) for child in children]
    stopped = asyncio.create_task(stop.wait())
    companions = [
        stopped,
        asyncio.create_task(_announce(deployment, children, status)),
        asyncio.create_task(_watch_figures(children[0], status)),
    ]
    try:
        done, _ = await asyncio.wait([stopped, *running], return_when=asyncio.FIRST_COMPLETED)
        failures = [error for task in done if (error := task.exception()) is not None]
        for failure in failures:
            status.print(str(failure))
        return 1 if failures else 0
    finally:
        status.print(f"stopping{_how_long(deployment) if stop.is_set() else ''}")
        for task in companions:
            task.cancel()
        await _end(children, running, deployment.config.shutdown_timeout_s + _STOP_MARGIN_S)
        await asyncio.gather(*running, *companions, return_exceptions=True)
        status.close()


def _how_long(deployment: Deployment) -> str:
    timeout_s = deployment.config.shutdown_timeout_s
    return f": requests under way may go on for {timeout_s:g} s, a second Ctrl-C ends them now"


async def _end(children: Sequence[Child], running: Sequence[asyncio.Task[None]], timeout_s: float) -> None:
    for child in children:
        child.stop()
    _, late = await asyncio.wait(running, timeout=timeout_s)
    if late:
        for child in children:
            child.kill()


def _on_signals(stop: asyncio.Event, children: Sequence[Child]) -> None:
    """The first signal stops everything in order, the second one at once."""

    def on_signal() -> None:
        if stop.is_set():
            for child in children:
                child.kill()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)


async def _announce(deployment: Deployment, children: Sequence[Child], status: StatusLine) -> None:
    """Says what to do once everything is up."""
    for child in children:
        await child.was_up.wait()
    url = reachable_url(children[0].ready)
    model = deployment.model_name
    while not await asyncio.to_thread(serves, url, model):  # noqa: ASYNC110 - the frontend does not tell
        await asyncio.sleep(_SERVED_POLL_S)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}]})
    status.print(
        f"\nready: {model} on {url} ({_describe(deployment)})\n"
        f"try:\n\n  curl {url}/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}\n\n"
        f"Further workers join with\n\n  {shlex.join(deployment.further_worker())}\n\n{_inspection(deployment)}"
        "Ctrl-C stops everything.\n"
    )


def _inspection(deployment: Deployment) -> str:
    """How to look at the tiers, where there are any."""
    socket = deployment.kvbm_socket()
    if socket is None:
        return ""
    return (
        f"What is kept beyond the devices is shown by\n\n  dynamo kvbm inspect --kvbm-socket {shlex.quote(socket)}\n\n"
    )


def _describe(deployment: Deployment) -> str:
    """The workers, for a person."""
    counts = Counter(role for _, role in deployment.workers())
    if list(counts) == [WorkerType.Aggregated]:
        count = counts[WorkerType.Aggregated]
        return f"{count} {deployment.config.engine} worker{'s' if count > 1 else ''}"
    roles = ", ".join(f"{count} {role.value}" for role, count in counts.items())
    return f"{deployment.config.engine} workers: {roles}"


async def _watch_figures(frontend: Child, status: StatusLine) -> None:
    await frontend.was_up.wait()
    while True:
        await asyncio.sleep(_STATUS_INTERVAL_S)
        status.update(await asyncio.to_thread(read_figures, reachable_url(frontend.ready)))
