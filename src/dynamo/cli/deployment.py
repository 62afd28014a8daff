"""The commands of the processes that make up a deployment on this host."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from dynamo.config import option
from dynamo.engines.make import ENGINES
from dynamo.frontend.config import FrontendConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig(FrontendConfig):
    """Start a frontend and workers for MODEL on this host, and keep them running. Ctrl-C stops everything.

    Without --namespace they keep to one of their own, so that several deployments on one host stay apart.
    """

    engine: str = option("vllm", flag="--engine", choices=ENGINES, help="what runs the model")
    workers: int = option(1, flag="--workers", help="how many worker processes")
    model_name: str | None = option(
        None, flag="--model-name", help="name to serve it under (default: MODEL's last part)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What is to run."""

    config: ServeConfig
    model_name: str
    model_dir: str
    worker_flags: Sequence[str]

    @property
    def namespace(self) -> str:
        """Two deployments on one host cannot have the same port."""
        return self.config.namespace or f"serve-{self.config.http_port or os.getpid()}"

    def commands(self) -> dict[str, list[str]]:
        """Each process's command line, by a name for the process."""
        commands = {"frontend": self._frontend()}
        return commands | {f"worker-{i + 1}": self._worker(i) for i in range(self.config.workers)}

    def _frontend(self) -> list[str]:
        c = self.config
        command = [sys.executable, "-m", "dynamo.frontend", "--http-host", c.http_host, "--http-port", str(c.http_port)]
        command += ["--router-mode", c.router_mode, "--http-body-limit-mb", str(c.body_limit_mb)]
        command += ["--http-keep-alive", str(c.keep_alive_s), "--http-client-timeout", str(c.client_timeout_s)]
        command += ["--access-log" if c.access_log else "--no-access-log"]
        return command + self._runtime_flags()

    def _worker(self, position: int) -> list[str]:
        c = self.config
        command = [sys.executable, "-m", f"dynamo.{c.engine}", "--model", self.model_dir]
        command += ["--served-model-name" if c.engine == "vllm" else "--model-name", self.model_name]
        command += ["--system-host", c.system_host, "--system-port", _port(c.system_port, position)]
        command += ["--rpc-host", c.rpc_host, "--rpc-port", _port(c.rpc_port, position)]
        return [*command, *self._runtime_flags(), *self.worker_flags]

    def _runtime_flags(self) -> list[str]:
        c = self.config
        flags = ["--discovery-backend", c.discovery_backend, "--request-plane", c.request_plane]
        flags += ["--shutdown-timeout", str(c.shutdown_timeout_s), "--file-kv", str(c.discovery_directory())]
        return [*flags, "--namespace", self.namespace]


def _port(first: int, position: int) -> str:
    """Workers on one host need ports of their own; 0 and -1 mean no port in particular."""
    return str(first + position if first > 0 else first)
