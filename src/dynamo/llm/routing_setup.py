"""How a process routes the requests of its models."""

import functools
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from dynamo.config import Live
from dynamo.llm.migration_config import MigrationConfig
from dynamo.llm.register import ModelEntry
from dynamo.protocols.model_card import ModelInput, WorkerType
from dynamo.router.config import KvRouterConfig
from dynamo.router.disagg import DisaggConfig
from dynamo.router.kv_placer import KvPlacer
from dynamo.router.placement import SelectorPlacer
from dynamo.router.remote_placer import RemotePlacer
from dynamo.router.selection import RouterMode
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.telemetry.disagg_metrics import DisaggMetrics
from dynamo.telemetry.migration_metrics import MigrationMetrics, MigrationType
from dynamo.telemetry.router_metrics import RouterMetrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSetup:
    """The router mode and what it needs."""

    mode: RouterMode = RouterMode.ROUND_ROBIN
    kv: KvRouterConfig = field(default_factory=KvRouterConfig)
    service: bool = False  # in mode KV: a router service decides
    disagg: Live[DisaggConfig] = field(default_factory=lambda: Live(DisaggConfig()))
    metrics: RouterMetrics | None = None
    disagg_metrics: DisaggMetrics | None = None
    migration: MigrationConfig = field(default_factory=MigrationConfig)
    migration_metrics: MigrationMetrics | None = None

    def placer(self, entry: ModelEntry, runtime: DistributedRuntime) -> KvPlacer | RemotePlacer | SelectorPlacer:
        """For the workers that are like the one that `entry` announces. To be closed."""
        card = entry.card
        rng = random.Random()  # noqa: S311 - no secrets here
        if self.mode is RouterMode.DIRECT and card.worker_type is WorkerType.Prefill:
            return SelectorPlacer(RouterMode.ROUND_ROBIN, rng)  # a request names the worker that answers it
        if self.mode is not RouterMode.KV:
            return SelectorPlacer(self.mode, rng)
        block_size = card.limits.kv_block_size
        if block_size is None or card.model_input is not ModelInput.Tokens:
            logger.warning(
                "%r has no KV blocks that its workers tell of: its requests go to the least loaded", card.name
            )
            return SelectorPlacer(self.mode, rng)
        if self.service:
            return RemotePlacer(runtime, entry.endpoint, card.name, rng)
        return KvPlacer(runtime, entry.endpoint, block_size, self.kv, card.name, rng)

    def count_moves(self, model: str, kind: MigrationType) -> Callable[[], None]:
        """What to call when a request to `model` goes on at another worker."""
        if self.migration_metrics is None:
            return lambda: None
        return functools.partial(self.migration_metrics.moved, model, kind)
