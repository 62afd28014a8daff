"""The commands of the processes that make up a deployment on this host."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dynamo.config import as_flags, option
from dynamo.engines.make import ENGINES
from dynamo.frontend.config import FrontendConfig
from dynamo.runtime.config import RuntimeConfig

_NOT_THE_FRONTENDS = ("rpc_port", "system_host", "system_port")  # workers listen there


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
        flags = as_flags(FrontendConfig, self._shared(), without=_NOT_THE_FRONTENDS)
        return [sys.executable, "-m", "dynamo.frontend", *flags]

    def _worker(self, position: int) -> list[str]:
        c = self.config
        command = [sys.executable, "-m", f"dynamo.{c.engine}", "--model", self.model_dir]
        command += ["--served-model-name" if c.engine == "vllm" else "--model-name", self.model_name]
        own = replace(self._shared(), system_port=_port(c.system_port, position), rpc_port=_port(c.rpc_port, position))
        return [*command, *as_flags(RuntimeConfig, own), *self.worker_flags]

    def _shared(self) -> ServeConfig:
        """The configuration with what this deployment adds to it."""
        return replace(self.config, namespace=self.namespace, file_kv=str(self.config.discovery_directory()))


def _port(first: int, position: int) -> int:
    """Workers on one host need ports of their own; 0 and -1 mean no port in particular."""
    return first + position if first > 0 else first
