"""Flags that every worker process has."""

from dataclasses import dataclass
from pathlib import Path

from dynamo.config import group, option
from dynamo.errors import ConfigError
from dynamo.kvbm.config import KvbmOptions
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.instance import EndpointId

_COMPONENTS = {WorkerType.Aggregated: "backend", WorkerType.Decode: "backend", WorkerType.Prefill: "prefill"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig(RuntimeConfig):
    """Serve a model."""

    endpoint: str | None = option(
        None,
        flag="--endpoint",
        env="DYN_ENDPOINT",
        metavar="PATH",
        help="where the model is served, as dyn://namespace.component.endpoint; without it NAMESPACE.backend.generate,"
        " for prefill workers NAMESPACE.prefill.generate",
    )
    custom_jinja_template: str | None = option(
        None,
        flag="--custom-jinja-template",
        env="DYN_CUSTOM_JINJA_TEMPLATE",
        metavar="FILE",
        help="chat template to use instead of the model's own",
    )

    @property
    def worker_type(self) -> WorkerType:
        """The part of requests that this worker does."""
        return WorkerType.Aggregated

    def endpoint_id(self) -> EndpointId:
        """Raises ConfigError when --endpoint or --namespace is not of the right form."""
        return self.workers_endpoint(self.endpoint, _COMPONENTS[self.worker_type])

    def chat_template(self) -> Path | None:
        """Raises ConfigError when there is none at --custom-jinja-template."""
        if self.custom_jinja_template is None:
            return None
        path = Path(self.custom_jinja_template)
        if not path.is_file():
            raise ConfigError(f"there is no chat template at {path}")
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class DisaggregatedWorkerConfig(WorkerConfig):
    """Serve a model, or one of the two stages of it."""

    disaggregation_mode: str = option(
        WorkerType.Aggregated.value,
        flag="--disaggregation-mode",
        env="DYN_DISAGGREGATION_MODE",
        choices=[role.value for role in WorkerType],
        aliases={"agg": WorkerType.Aggregated.value},
        help="do all of each request; only prefill prompts; or decode what others have prefilled",
    )
    kvbm: KvbmOptions = group(KvbmOptions)

    @property
    def worker_type(self) -> WorkerType:
        return WorkerType(self.disaggregation_mode)
