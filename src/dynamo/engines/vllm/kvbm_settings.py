"""What a worker tells its engine's processes about the block manager, in vLLM's own configuration."""

import uuid

import msgspec
from vllm.config import KVTransferConfig

from dynamo.protocols.kvbm import PoolOptions

CONNECTOR = "DynamoKvbmConnector"
CONNECTOR_MODULE = "dynamo.engines.vllm.kvbm_connector"
_KEY = "dynamo_kvbm"
_CHILDREN = "connectors"  # of a MultiConnector


class KvbmSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Made once per start of a worker."""

    socket: str  # of the service
    options: PoolOptions
    owner: str  # unique to this start; see owner_of_rank
    model: str  # fingerprint of its files
    model_name: str


def new_owner() -> str:
    return uuid.uuid4().hex


def owner_of_rank(owner: str, dp_rank: int) -> str:
    """Each data-parallel rank is an engine of its own to the service."""
    return f"{owner}-{dp_rank}"


def with_kvbm(other: KVTransferConfig | None, settings: KvbmSettings) -> KVTransferConfig:
    """Our connector alone, or behind the one that hands prompts over: what a worker is handed, it does not look up.

    A block that cannot be loaded is computed, unless the other one has said that loads which fail fail the request.
    """
    ours = {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": CONNECTOR_MODULE,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {_KEY: msgspec.to_builtins(settings)},
    }
    if other is None:
        return KVTransferConfig(**ours, kv_load_failure_policy="recompute")
    theirs = {
        "kv_connector": other.kv_connector,
        "kv_connector_module_path": other.kv_connector_module_path,
        "kv_role": other.kv_role,
        "kv_connector_extra_config": other.kv_connector_extra_config,
    }
    return KVTransferConfig(
        kv_connector="MultiConnector",
        kv_role=other.kv_role,
        kv_load_failure_policy="fail" if other.is_kv_consumer else "recompute",
        kv_connector_extra_config={**other.kv_connector_extra_config, _CHILDREN: [theirs, ours]},
    )


def settings_of(config: KVTransferConfig | None) -> KvbmSettings | None:
    """Those that child_config() has put there, be it beside another connector."""
    if config is None:
        return None
    extras = [config.kv_connector_extra_config]
    extras += [child.get("kv_connector_extra_config", {}) for child in extras[0].get(_CHILDREN, [])]
    for extra in extras:
        if _KEY in extra:
            return msgspec.convert(extra[_KEY], KvbmSettings)
    return None
