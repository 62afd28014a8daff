"""`dynamo serve`: the processes of one host, supervised."""

import asyncio
import json
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Sequence

from dynamo.cli.control import serve_control
from dynamo.cli.deployment import Deployment, ServeConfig
from dynamo.cli.fleets import Fleets
from dynamo.cli.frontend_api import reachable_url, read_figures, serves
from dynamo.cli.process import Child
from dynamo.cli.status import StatusLine
from dynamo.cli.supervisor import Supervisor
from dynamo.cli.worker_flags import split_at_dashes
from dynamo.cli.worker_roles import EndpointWorkerRoles
from dynamo.config import build_parser, from_namespace
from dynamo.engines.make import check_engine
from dynamo.errors import ConfigError, DynamoError
from dynamo.frontend.http_socket import bind_http
from dynamo.llm.model_card import default_name
from dynamo.llm.model_source import resolve_model
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.distributed import DistributedRuntime

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
    own, worker_flags = split_at_dashes(argv)
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
    end_timeout_s = deployment.config.shutdown_timeout_s + _STOP_MARGIN_S
    supervisor = Supervisor(children, os.environ | deployment.environ(), status.log, end_timeout_s=end_timeout_s)
    stop = asyncio.Event()
    _on_signals(stop, supervisor)
    try:
        runtime = DistributedRuntime(config=deployment.control())
    except DynamoError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    for name, command in deployment.services().items():
        supervisor.start(name, command, must_start=True)
    fleets = Fleets(deployment, supervisor, EndpointWorkerRoles(runtime, deployment.namespace))
    fleets.start()
    stopped = asyncio.create_task(stop.wait())
    failures = [asyncio.create_task(supervisor.failure()), asyncio.create_task(_control(runtime, deployment, fleets))]
    companions = [
        stopped,
        *failures,
        asyncio.create_task(_announce(deployment, supervisor, status)),
        asyncio.create_task(_watch_figures(children[0], status)),
    ]
    try:
        await asyncio.wait([stopped, *failures], return_when=asyncio.FIRST_COMPLETED)
        reasons = [task.result() for task in failures if task.done()]
        for reason in reasons:
            status.print(reason)
        return 1 if reasons else 0
    finally:
        status.print(f"stopping{_how_long(deployment) if stop.is_set() else ''}")
        for task in companions:
            task.cancel()
        fleets.close()
        await supervisor.close()
        await asyncio.gather(*companions, return_exceptions=True)
        await runtime.close(graceful=False)
        status.close()


def _how_long(deployment: Deployment) -> str:
    timeout_s = deployment.config.shutdown_timeout_s
    return f": requests under way may go on for {timeout_s:g} s, a second Ctrl-C ends them now"


def _on_signals(stop: asyncio.Event, supervisor: Supervisor) -> None:
    """The first signal stops everything in order, the second one at once."""

    def on_signal() -> None:
        if stop.is_set():
            supervisor.kill()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)


async def _control(runtime: DistributedRuntime, deployment: Deployment, fleets: Fleets) -> str:
    """Lets a planner change the workers until it is cancelled; returns why that is impossible, if it is."""
    try:
        await serve_control(runtime, deployment.namespace, fleets)
    except DynamoError as error:
        return str(error)
    await asyncio.Event().wait()
    return ""


async def _announce(deployment: Deployment, supervisor: Supervisor, status: StatusLine) -> None:
    """Says what to do once everything is up."""
    frontend, *others = supervisor.children
    for child in (frontend, *others):
        await supervisor.settled(child)
    url = reachable_url(frontend.ready)
    model = deployment.model_name
    while not await asyncio.to_thread(serves, url, model):  # noqa: ASYNC110 - the frontend does not tell
        await asyncio.sleep(_SERVED_POLL_S)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}]})
    status.print(
        f"\nready: {model} on {url} ({_describe(deployment)})\n"
        f"try:\n\n  curl {url}/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}\n\n"
        f"{_growth(deployment)}{_inspection(deployment)}"
        "Ctrl-C stops everything.\n"
    )


def _growth(deployment: Deployment) -> str:
    """How there get to be more workers."""
    if deployment.config.with_planner:
        return f"What the planner does, and why, is shown by\n\n  {shlex.join(deployment.planner_status())}\n\n"
    return f"Further workers join with\n\n  {shlex.join(deployment.further_worker())}\n\n"


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
    counts = Counter(deployment.workers())
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
