"""The role that a configuration names."""

from collections.abc import Callable, Mapping

from dynamo.engines.mocker.decode_role import DecodeRole
from dynamo.engines.mocker.handoff_config import HandoffConfig
from dynamo.engines.mocker.mailbox import Mailbox
from dynamo.engines.mocker.prefill_role import PrefillRole
from dynamo.engines.mocker.role import AggregatedRole, Role
from dynamo.engines.mocker.scheduler import Scheduler
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.protocols.model_card import WorkerType
from dynamo.telemetry.kv_transfer_metrics import KvTransferMetrics


def make_role(
    config: HandoffConfig,
    scheduler: Scheduler,
    mailboxes: Mapping[SequenceState, Mailbox],
    wake: Callable[[], None],
    metrics: KvTransferMetrics,
) -> Role:
    """`mailboxes`: of those whose outputs are still wanted. `wake`: the scheduler may have work again."""
    if config.role is WorkerType.Prefill:
        return PrefillRole(config, scheduler, mailboxes, wake, metrics)
    if config.role is WorkerType.Decode:
        return DecodeRole(config, scheduler, mailboxes, wake, metrics)
    return AggregatedRole(scheduler)
