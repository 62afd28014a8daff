"""The commands of the processes that make up a deployment on this host."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from dynamo.config import as_flags, group, option, settings
from dynamo.engines.make import DISAGGREGATED_ENGINES, ENGINES
from dynamo.errors import ConfigError
from dynamo.frontend.config import FrontendConfig
from dynamo.kvbm.config import KvbmOptions
from dynamo.kvbm.launch import service_command
from dynamo.kvbm.socket_path import default_socket
from dynamo.planner.budget import check_budget
from dynamo.planner.config import PlannerOptions
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.config import RuntimeConfig

_NOT_THE_FRONTENDS = ("rpc_port", "rpc_advertise", "system_host", "system_port")  # the workers listen there
WORKERS_MAX = 256  # of a role: more on one host are a mistake
_SIMULATED_TIERS = ("mocker",)  # need no block manager
_CHANGEABLE = "--changeable-role"  # of vLLM's workers
_BY_ENVIRONMENT = ("nats_server",)  # may hold a password, and command lines can be read by all
_NAMES = {WorkerType.Aggregated: "worker", WorkerType.Prefill: "prefill", WorkerType.Decode: "decode"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig(FrontendConfig):
    """Start a frontend and workers for MODEL on this host, and keep them running. Ctrl-C stops everything.

    Without --namespace they keep to one of their own, so that several deployments on one host stay apart.
    """

    engine: str = option("vllm", flag="--engine", choices=ENGINES, help="what runs the model")
    workers: int | None = option(None, flag="--workers", help="how many worker processes, each doing all (default: 1)")
    prefill_workers: int = option(0, flag="--prefill-workers", help="how many that only prefill prompts, for others")
    decode_workers: int = option(
        0, flag="--decode-workers", help="how many that decode what those have prefilled; they need at least one"
    )
    model_name: str | None = option(
        None, flag="--model-name", help="name to serve it under (default: MODEL's last part)"
    )
    kvbm: KvbmOptions = group(KvbmOptions)
    with_planner: bool = option(
        False, flag="--planner", help="start further workers and end them, as the traffic needs; see docs/planner.md"
    )
    planner: PlannerOptions = group(PlannerOptions)

    def __post_init__(self) -> None:
        """Raises ConfigError for workers that cannot be, or cannot serve."""
        for flag, count in (("prefill", self.prefill_workers), ("decode", self.decode_workers)):
            if count < 0:
                raise ConfigError(f"--{flag}-workers must be at least 0, not {count}")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers must be at least 1, not {self.workers}")
        if self.prefill_workers and not self.decode_workers:
            raise ConfigError("--prefill-workers needs --decode-workers: somebody has to go on with the prompts")
        if self.decode_workers and self.engine not in DISAGGREGATED_ENGINES:
            raise ConfigError(f"--engine {self.engine} cannot do prefill and decode apart")
        if self.kvbm.is_enabled and self.engine not in DISAGGREGATED_ENGINES:
            raise ConfigError(f"--engine {self.engine} has no KV cache that --kvbm-host-gb could keep")
        self._check_planner()

    def _check_planner(self) -> None:
        """Raises ConfigError for options of a planner that there is not, or workers that it could not scale."""
        options = self.planner
        if not self.with_planner:
            for setting in settings(PlannerOptions):
                if attrgetter(setting.name)(options) != setting.default:
                    raise ConfigError(f"{setting.option.flags[0]} needs --planner")
            return
        if self.aggregated_workers() and self.decode_workers:
            raise ConfigError("--planner scales either --workers, or --prefill-workers and --decode-workers")
        if options.convert_roles and self.engine == "vllm" and self.decode_workers and self.kvbm.is_enabled:
            raise ConfigError("--convert-roles and --kvbm-host-gb exclude each other with --engine vllm")
        for flag, count, most in (
            ("--prefill-workers", self.prefill_workers, options.max_prefill_workers),
            ("--decode-workers", self.decode_workers, options.max_decode_workers),
            ("--workers", self.aggregated_workers(), options.max_decode_workers),
        ):
            if count > most:
                raise ConfigError(f"to begin with, {count} {flag} is more than the planner may have: {most}")
        if (most := max(options.max_prefill_workers, options.max_decode_workers)) > WORKERS_MAX:
            raise ConfigError(f"the planner may have {most} workers of a role, and one host {WORKERS_MAX}")
        check_budget(options, frozenset(self.roles()))
        others = self.aggregated_workers() + self.decode_workers  # one of both is 0
        gpus = self.prefill_workers * options.prefill_gpus + others * options.decode_gpus
        if options.gpu_budget is not None and gpus > options.gpu_budget:
            raise ConfigError(f"to begin with, the workers have {gpus} GPUs, --gpu-budget is {options.gpu_budget}")

    def roles(self) -> Sequence[WorkerType]:
        """Those of which there may be more and fewer workers; of prefill workers none, perhaps."""
        if self.decode_workers:
            return (WorkerType.Prefill, WorkerType.Decode)
        return (WorkerType.Aggregated,)

    def aggregated_workers(self) -> int:
        """How many workers do all of each request."""
        if self.workers is not None:
            return self.workers
        return 0 if self.decode_workers else 1


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

    def workers(self) -> list[WorkerType]:
        """What each of the workers does that there are at first."""
        c = self.config
        counts = {
            WorkerType.Aggregated: c.aggregated_workers(),
            WorkerType.Prefill: c.prefill_workers,
            WorkerType.Decode: c.decode_workers,
        }
        return [role for role, count in counts.items() for _ in range(count)]

    @property
    def roles(self) -> Sequence[WorkerType]:
        return self.config.roles()

    @property
    def converts(self) -> bool:
        """Whether workers may turn from one role to another; a single one may still refuse."""
        c = self.config
        if c.engine == "vllm":  # has to know when it starts
            return bool(c.decode_workers) and (c.planner.convert_roles or _CHANGEABLE in self.worker_flags)
        return bool(c.decode_workers)  # so the engine is one of DISAGGREGATED_ENGINES

    def services(self) -> dict[str, list[str]]:
        """The command line of each process that is no worker, by a name for it."""
        makers = {"kvbm": self._block_manager, "planner": self._planner}
        with_ports = {name: makers[name](position) for position, name in enumerate(self._services_with_ports())}
        return {"frontend": self._frontend()} | with_ports

    def worker(self, role: WorkerType, position: int) -> list[str]:
        """A worker's command line. `position` sets its ports apart from those of the other workers that live."""
        own = self._with_ports(len(self._services_with_ports()) + position)
        return [*self._engine(role), *_runtime_flags(own), *self._kvbm_flags(), *self.worker_flags]

    def further_worker(self) -> list[str]:
        """What somebody types to start one more, like the last one; secrets have to be in the environment there too."""
        role = self.workers()[-1]
        return [*self._engine(role), *self._brief_flags(), *self._kvbm_flags(brief=True), *self.worker_flags]

    def planner_status(self) -> list[str]:
        """What somebody types to see what the planner does, and why."""
        return ["dynamo", "planner", "status", *self._brief_flags()]

    def control(self) -> RuntimeConfig:
        """How the supervisor itself takes part: on ports that are nobody else's."""
        return replace(self._shared(), rpc_port=0, rpc_advertise=None, system_port=-1, event_plane="direct")

    def kvbm_socket(self) -> str | None:
        """Where the deployment's block manager listens, if it has one."""
        if not self.config.kvbm.is_enabled or self.config.engine in _SIMULATED_TIERS:
            return None
        return str(self._kvbm().socket_path)

    def environ(self) -> dict[str, str]:
        """What the processes' environment has beside this one's: secrets, which no command line may tell."""
        environ: dict[str, str] = {}
        for setting in settings(FrontendConfig):
            value = attrgetter(setting.name)(self.config)
            secret = setting.name in _BY_ENVIRONMENT or not setting.option.flags
            if secret and setting.option.env is not None and value is not None:
                environ[setting.option.env] = value
        return environ

    def _frontend(self) -> list[str]:
        flags = as_flags(FrontendConfig, self._shared(), without=(*_NOT_THE_FRONTENDS, *_BY_ENVIRONMENT))
        return [sys.executable, "-m", "dynamo.frontend", *flags]

    def _services_with_ports(self) -> list[str]:
        """Those that have the first of the ports, whatever workers come and go. The frontend has its HTTP port."""
        has = {"kvbm": self.kvbm_socket() is not None, "planner": self.config.with_planner}
        return [name for name, is_there in has.items() if is_there]

    def _block_manager(self, position: int) -> list[str]:
        own = self._with_ports(position)
        system = ["--system-host", own.system_host, "--system-port", str(own.system_port)]
        return [*service_command(self._kvbm().socket_path, own, None), *system]

    def _planner(self, position: int) -> list[str]:
        flags = [*_runtime_flags(self._with_ports(position)), *as_flags(PlannerOptions, self.config.planner)]
        return [sys.executable, "-m", "dynamo.planner", "--connector", "local", *flags]

    def _engine(self, role: WorkerType) -> list[str]:
        """The beginning of a worker's command line: what it runs."""
        c = self.config
        command = [sys.executable, "-m", f"dynamo.{c.engine}", "--model", self.model_dir]
        command += ["--served-model-name" if c.engine == "vllm" else "--model-name", self.model_name]
        if role is not WorkerType.Aggregated:
            command += ["--disaggregation-mode", role.value]
        if c.engine == "vllm" and c.planner.convert_roles and role is not WorkerType.Aggregated:
            command.append(_CHANGEABLE)
        return command

    def _with_ports(self, position: int) -> RuntimeConfig:
        """How a process takes part that listens on ports of its own."""
        c = self.config
        return replace(
            self._shared(),
            system_port=_port(c.system_port, position),
            rpc_port=_port(c.rpc_port, position),
            rpc_advertise=_address(c.advertised(), position),
        )

    def _kvbm(self) -> KvbmOptions:
        """The deployment's own block manager, which is one of its processes."""
        socket = self.config.kvbm.socket or str(default_socket().with_name(f"kvbm-{self.namespace}.sock"))
        return replace(self.config.kvbm, socket=socket, start=False)

    def _kvbm_flags(self, *, brief: bool = False) -> list[str]:
        """`brief`: without what is the default."""
        if not self.config.kvbm.is_enabled:
            return []
        options = self._kvbm()
        usual = {s.name for s in settings(KvbmOptions) if attrgetter(s.name)(options) == s.default} if brief else ()
        return as_flags(KvbmOptions, options, without=usual)

    def _brief_flags(self) -> list[str]:
        """How a process that somebody starts by hand takes part; without what is the default."""
        config = replace(self.config, namespace=self.namespace)
        usual = {s.name for s in settings(RuntimeConfig) if attrgetter(s.name)(config) == s.default}
        return as_flags(RuntimeConfig, config, without={*usual, *_NOT_THE_FRONTENDS, *_BY_ENVIRONMENT})

    def _shared(self) -> ServeConfig:
        """The configuration with what this deployment adds to it."""
        return replace(self.config, namespace=self.namespace, file_kv=str(self.config.discovery_directory()))


def worker_name(role: WorkerType, number: int) -> str:
    """The name of a worker process."""
    return f"{_NAMES[role]}-{number}"


def _runtime_flags(config: RuntimeConfig) -> list[str]:
    return as_flags(RuntimeConfig, config, without=_BY_ENVIRONMENT)


def _port(first: int, position: int) -> int:
    """Processes on one host need ports of their own; 0 and -1 mean no port in particular."""
    return first + position if first > 0 else first


def _address(first: tuple[str, int] | None, position: int) -> str | None:
    """Likewise where they are reached, if that is elsewhere."""
    return None if first is None else f"{first[0]}:{first[1] + position}"
