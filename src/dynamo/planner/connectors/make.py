"""The connector that the command line names."""

from dynamo.errors import ConfigError
from dynamo.planner.budget import check_budget
from dynamo.planner.config import PlannerOptions
from dynamo.planner.connectors.base import Connector
from dynamo.planner.connectors.kubernetes_config import KubernetesConfig
from dynamo.planner.connectors.local import LocalConnector
from dynamo.planner.connectors.virtual import VirtualConnector
from dynamo.planner.decisions import PLANNER_COMPONENT
from dynamo.planner.process_config import PlannerConfig
from dynamo.planner.scaling import SCALING_ENDPOINT
from dynamo.planner.workers import Workers
from dynamo.runtime.distributed import DistributedRuntime


async def make_connector(runtime: DistributedRuntime, config: PlannerConfig) -> Connector:
    """Raises ConfigError for options that it cannot be made of, and what Endpoint.start() raises."""
    match config.connector:
        case "local":
            return LocalConnector(runtime, config.worker_namespace)
        case "kubernetes":
            return _kubernetes(config.kubernetes, config.planner)
        case _:
            return await _virtual(runtime, config)


def _kubernetes(config: KubernetesConfig, options: PlannerOptions) -> Connector:
    try:
        from dynamo.planner.connectors.kubernetes import KubernetesConnector
    except ImportError as error:
        raise ConfigError(f"Kubernetes needs the {error.name} package: pip install 'dynamo-py[kubernetes]'") from None
    check_budget(options, frozenset(config.fleets()))
    return KubernetesConnector(config)


async def _virtual(runtime: DistributedRuntime, config: PlannerConfig) -> VirtualConnector:
    workers = Workers(runtime.discovery, config.worker_namespace, config.model_name)
    virtual = VirtualConnector(workers, config.acknowledge_timeout_s)
    component = runtime.namespace(config.worker_namespace).component(PLANNER_COMPONENT)
    await virtual.serve(component.endpoint(SCALING_ENDPOINT))
    return virtual
