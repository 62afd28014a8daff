"""`dynamo serve`: the processes of one host, supervised."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from dynamo.cli.process import Child
from dynamo.cli.status import Figures, StatusLine
from dynamo.config import build_parser, from_namespace, option
from dynamo.engines.make import ENGINES
from dynamo.errors import ConfigError
from dynamo.frontend.config import FrontendConfig
from dynamo.llm.model_source import resolve_model

PROG = "dynamo serve"
_STATUS_INTERVAL_S = 1.0
_STOP_MARGIN_S = 5.0
_LOCAL_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - how to reach ourselves


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig(FrontendConfig):
    """Start a frontend and workers for MODEL on this host, and keep them running. Ctrl-C stops everything."""

    engine: str = option("vllm", flag="--engine", choices=ENGINES, help="what runs the model")
    workers: int = option(1, flag="--workers", help="how many worker processes")
    model_name: str | None = option(
        None, flag="--model-name", help="name to serve it under (default: MODEL's last part)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What is to run."""

    config: ServeConfig
    model: str
    model_name: str
    model_dir: str
    worker_flags: Sequence[str]

    def frontend_command(self) -> list[str]:
        c = self.config
        command = [sys.executable, "-m", "dynamo.frontend", "--http-host", c.http_host, "--http-port", str(c.http_port)]
        command += ["--router-mode", c.router_mode, "--http-body-limit-mb", str(c.body_limit_mb)]
        command += ["--http-keep-alive", str(c.keep_alive_s), "--access-log" if c.access_log else "--no-access-log"]
        return command + self._runtime_flags()

    def worker_command(self, position: int) -> list[str]:
        command = [sys.executable, "-m", f"dynamo.{self.config.engine}", "--model", self.model_dir]
        command += ["--served-model-name" if self.config.engine == "vllm" else "--model-name", self.model_name]
        port = self.config.system_port
        command += ["--system-port", str(port + position if port > 0 else port)]
        return [*command, *self._runtime_flags(), *self.worker_flags]

    @property
    def url(self) -> str:
        host = self.config.http_host
        return f"http://{_LOCAL_HOSTS.get(host, host)}:{self.config.http_port}"

    def _runtime_flags(self) -> list[str]:
        c = self.config
        flags = ["--discovery-backend", c.discovery_backend, "--shutdown-timeout", str(c.shutdown_timeout_s)]
        flags += ["--file-kv", str(c.discovery_directory())]
        return flags + (["--namespace", c.namespace] if c.namespace else [])


def main(argv: Sequence[str]) -> int:
    try:
        deployment = _prepare(_parse(argv))
    except ConfigError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    return asyncio.run(_supervise(deployment))


def _parse(argv: Sequence[str]) -> tuple[ServeConfig, str, list[str]]:
    argv = list(argv)
    own, worker_flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser: argparse.ArgumentParser = build_parser(
        ServeConfig,
        prog=PROG,
        epilog="What follows -- goes to the workers, as in: dynamo serve -- --max-model-len 1024",
    )
    parser.add_argument(
        "model", nargs="?", default="smollm2", metavar="MODEL", help="smollm2 (default), a directory or a hub name"
    )
    namespace = parser.parse_args(own)
    config = from_namespace(ServeConfig, namespace)
    if config.workers < 1:
        parser.error("--workers must be at least 1")
    if config.discovery_backend == "mem":
        parser.error("--discovery-backend mem works within one process only, and this starts several")
    return config, namespace.model, worker_flags


def _prepare(parsed: tuple[ServeConfig, str, list[str]]) -> Deployment:
    """Fetches the model once, before several workers would try to at the same time."""
    config, model, worker_flags = parsed
    model_dir = resolve_model(model, weights=config.engine == "vllm")
    return Deployment(
        config=config,
        model=model,
        model_name=config.model_name or model.rstrip("/").rpartition("/")[2],
        model_dir=str(model_dir),
        worker_flags=worker_flags,
    )


async def _supervise(deployment: Deployment) -> int:
    children: list[Child] = []
    status = StatusLine(children)
    commands = {"frontend": deployment.frontend_command()}
    commands |= {f"worker-{i + 1}": deployment.worker_command(i) for i in range(deployment.config.workers)}
    children += [Child(name, command, os.environ, status.log) for name, command in commands.items()]
    stop = asyncio.Event()
    _on_signals(stop, children)
    tasks = [asyncio.create_task(child.run(), name=child.name) for child in children]
    tasks.append(asyncio.create_task(_announce(deployment, children, status)))
    watcher = asyncio.create_task(_watch_figures(deployment.url, status))
    stopped = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([stopped, *tasks[:-1]], return_when=asyncio.FIRST_COMPLETED)
        failures = [str(task.exception()) for task in done if task is not stopped and task.exception() is not None]
        for failure in failures:
            status.print(failure)
        return 1 if failures else 0
    finally:
        status.print("stopping")
        for task in (*tasks, watcher, stopped):
            task.cancel()
        await asyncio.gather(*tasks, watcher, stopped, return_exceptions=True)
        await asyncio.gather(*(c.stop(deployment.config.shutdown_timeout_s + _STOP_MARGIN_S) for c in children))
        status.close()


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
    count = deployment.config.workers
    plural = "s" if count > 1 else ""
    question = {"role": "user", "content": "What is the capital of France?"}
    body = json.dumps({"model": deployment.model_name, "messages": [question]})
    status.print(
        f"\nready: {deployment.model_name} on {deployment.url} ({count} {deployment.config.engine} worker{plural})\n"
        f"try:\n\n  curl {deployment.url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n\n"
        "Ctrl-C stops everything.\n"
    )


async def _watch_figures(url: str, status: StatusLine) -> None:
    while True:
        await asyncio.sleep(_STATUS_INTERVAL_S)
        status.update(await asyncio.to_thread(_read_figures, f"{url}/metrics"))


def _read_figures(url: str) -> Figures | None:
    with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310
        return Figures.parse(response.read().decode())
    return None
