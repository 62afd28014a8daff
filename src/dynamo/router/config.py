"""How the KV router decides. Flags and names are upstream's where it has them."""

from dataclasses import dataclass
from enum import StrEnum

from dynamo.config import option
from dynamo.router.radix_tree import MAX_BLOCKS


class QueuePolicy(StrEnum):
    """Which of the waiting requests goes first."""

    FCFS = "fcfs"  # first come, first served
    WSPT = "wspt"  # weighted shortest processing time: the fewest tokens to prefill per weight
    LCFS = "lcfs"  # last come, first served: under overload those who still wait are served, not those who gave up


class Affinity(StrEnum):
    """How firmly a session (header X-Dynamo-Session-ID) stays with its worker."""

    OFF = "off"
    SOFT = "soft"  # as if the worker had the whole prompt in its cache; a much busier worker loses it all the same
    HARD = "hard"  # as long as the worker lives


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRouterConfig:
    """Weigh cached blocks against load."""

    overlap_score_weight: float = option(
        8.0,
        flag=("--kv-overlap-score-weight", "--router-kv-overlap-score-weight", "--router-kv-overlap-score-credit"),
        env="DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT",
        minimum=0,
        help="kv: credit for a block that a worker has on its device, in blocks to prefill; 0 ignores caches",
    )
    host_cache_hit_weight: float = option(
        6.0,
        flag="--router-host-cache-hit-weight",
        env="DYN_ROUTER_HOST_CACHE_HIT_WEIGHT",
        minimum=0,
        help="kv: the same for a block in host memory",
    )
    disk_cache_hit_weight: float = option(
        2.0,
        flag="--router-disk-cache-hit-weight",
        env="DYN_ROUTER_DISK_CACHE_HIT_WEIGHT",
        minimum=0,
        help="kv: the same for a block on disk",
    )
    prefill_load_scale: float = option(
        32.0,
        flag=("--prefill-load-scale", "--router-prefill-load-scale"),
        env="DYN_ROUTER_PREFILL_LOAD_SCALE",
        minimum=0,
        help="kv: weight of a block to prefill against a block being decoded",
    )
    router_temperature: float = option(
        0.0,
        flag="--router-temperature",
        env="DYN_ROUTER_TEMPERATURE",
        minimum=0,
        help="kv: 0 takes the cheapest worker, more spreads requests over those that cost little more",
    )
    use_kv_events: bool = option(
        True,
        flag=("--router-kv-events", "--kv-events"),
        env="DYN_ROUTER_USE_KV_EVENTS",
        help="kv: know what workers have cached from their events; without, from where requests were sent",
    )
    router_ttl_secs: float = option(
        120.0,
        flag="--router-ttl-secs",
        env="DYN_ROUTER_TTL_SECS",
        metavar="SECONDS",
        minimum=0,
        help="kv: how long a worker without events is thought to keep what it was sent",
    )
    router_max_tree_size: int = option(
        MAX_BLOCKS,
        flag="--router-max-tree-size",
        env="DYN_ROUTER_MAX_TREE_SIZE",
        metavar="BLOCKS",
        minimum=1,
        help="kv: how many different blocks are remembered; those unused for longest are forgotten first",
    )
    router_queue_threshold: float | None = option(
        None,
        flag="--router-queue-threshold",
        env="DYN_ROUTER_QUEUE_THRESHOLD",
        minimum=0,
        help="kv: requests wait while every worker has more tokens to prefill than this many of its batches"
        " (default: they never wait)",
    )
    router_queue_policy: str = option(
        QueuePolicy.FCFS.value,
        flag="--router-queue-policy",
        env="DYN_ROUTER_QUEUE_POLICY",
        choices=[policy.value for policy in QueuePolicy],
        help="kv: which of those that wait goes first",
    )
    router_queue_size: int = option(
        4096,
        flag="--router-queue-size",
        env="DYN_ROUTER_QUEUE_SIZE",
        metavar="REQUESTS",
        minimum=1,
        help="kv: how many may wait; more are refused as overload",
    )
    router_replica_sync: bool = option(
        False,
        flag="--router-replica-sync",
        env="DYN_ROUTER_REPLICA_SYNC",
        help="kv: tell the other routers of the same workers what was sent where",
    )
    router_session_affinity: str = option(
        Affinity.SOFT.value,
        flag="--router-session-affinity",
        env="DYN_ROUTER_SESSION_AFFINITY",
        choices=[affinity.value for affinity in Affinity],
        help="kv: how firmly requests with the same X-Dynamo-Session-ID stay with one worker",
    )
    router_session_ttl_secs: float = option(
        600.0,
        flag="--router-session-ttl-secs",
        env="DYN_ROUTER_SESSION_TTL_SECS",
        metavar="SECONDS",
        minimum=0,
        help="kv: after this long without a request a session is forgotten",
    )
    router_active_request_expiry_secs: float = option(
        3600.0,
        flag="--router-active-request-expiry-secs",
        env="DYN_ROUTER_ACTIVE_REQUEST_EXPIRY_SECS",
        metavar="SECONDS",
        minimum=0,
        help="kv: a request that has given no sign for so long no longer counts as load",
    )
