"""Sets vLLM up for its part in disaggregated serving."""

import importlib.util
from typing import TYPE_CHECKING

from torch.version import cuda
from vllm.config import KVTransferConfig
from vllm.platforms import current_platform

from dynamo.engines.vllm.handoffs import Handoffs
from dynamo.errors import ConfigError
from dynamo.protocols.model_card import WorkerType

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

_CONNECTOR = "NixlConnector"
_NIXL = "Nixl"  # in the names of all of its connectors
_CPU_CONNECTOR_MODULE = "dynamo.engines.vllm.cpu_nixl_connector"  # has a class of the same name
# vLLM advises against it for NIXL, and will remove it, but has nothing else for a worker that may do either. What a
# worker is to do, each request says; by its role vLLM takes precautions, with this one those of both.
_BOTH = "kv_both"
_ROLES = {WorkerType.Prefill: "kv_producer", WorkerType.Decode: "kv_consumer"}
_LEASE = "kv_lease_duration"
_BUILDS = ("nixl_cu12", "nixl_cu13", "nixl_rocm")


def choose_connector(args: "AsyncEngineArgs", role: WorkerType, handoff_timeout_s: int, *, changeable: bool) -> None:
    """Gives a worker that is to prefill or to decode NIXL's connector, unless the user has chosen one.

    `changeable`: so that it may change its role.

    Raises ConfigError when NIXL is not installed, or when the user's connector has another role.
    """
    if role is WorkerType.Aggregated:
        return
    if args.kv_transfer_config is None:
        # The buffer is where vLLM runs by default. A load that fails must fail the request: nothing of it was told
        # then, and it begins anew without the handoff.
        args.kv_transfer_config = KVTransferConfig(
            kv_connector=_CONNECTOR,
            kv_connector_module_path=_CPU_CONNECTOR_MODULE if current_platform.is_cpu() else None,
            kv_role=_BOTH if changeable else _ROLES[role],
            kv_load_failure_policy="fail",
        )
    config = args.kv_transfer_config
    if not (config.is_kv_producer if role is WorkerType.Prefill else config.is_kv_consumer):
        raise ConfigError(f"--kv-transfer-config has kv_role {config.kv_role}, of no use to a {role.value} worker")
    if _NIXL in (config.kv_connector or ""):
        _check_nixl()
        config.kv_connector_extra_config.setdefault(_LEASE, handoff_timeout_s)


def handoffs(config: KVTransferConfig | None, role: WorkerType, handoff_timeout_s: int) -> Handoffs:
    """What a worker of this role takes and gives, with the connector that vLLM was configured with."""
    if role is WorkerType.Aggregated or config is None:
        return Handoffs()
    beside = config.get_from_extra_config("connectors", [])  # with the block manager's, it is the first of two
    connector = beside[0]["kv_connector"] if beside else config.kv_connector
    return Handoffs(
        connector=connector or "",
        prefills=role is WorkerType.Prefill,
        decodes=role is WorkerType.Decode,
        lease_s=config.get_from_extra_config(_LEASE, handoff_timeout_s),
        changeable=config.kv_role == _BOTH and _NIXL in (config.kv_connector or ""),
    )


def _check_nixl() -> None:
    """The library is two packages: one that chooses, and a build for one version of CUDA, which CPUs can use too."""
    if importlib.util.find_spec("nixl") is not None and any(map(importlib.util.find_spec, _BUILDS)):
        return
    build = "nixl-cu13" if cuda is not None and cuda.startswith("13.") else "nixl-cu12"
    raise ConfigError(
        f"disaggregated serving needs NIXL, which is not installed: pip install --no-deps nixl==1.5.1 {build}==1.5.1"
    )
