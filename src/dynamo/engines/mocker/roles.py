"""A role by its name."""

from collections.abc import Callable, Mapping

from dynamo.engines.mocker.decode_role import DecodeRole
from dynamo.engines.mocker.kv_port import KvPort
from dynamo.engines.mocker.mailbox import Mailbox
from dynamo.engines.mocker.prefill_role import PrefillRole
from dynamo.engines.mocker.role import AggregatedRole, Role
from dynamo.engines.mocker.scheduler import Scheduler
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.protocols.model_card import WorkerType
from dynamo.telemetry.kv_transfer_metrics import KvTransferMetrics


def make_role(
    role: WorkerType,
    port: KvPort,
    lease_s: float,
    scheduler: Scheduler,
    mailboxes: Mapping[SequenceState, Mailbox],
    wake: Callable[[], None],
    metrics: KvTransferMetrics,
) -> Role:
    """Not started. `port` and `lease_s`: see HandoffConfig; of no use to a worker that does all.

    `mailboxes`: of those whose outputs are still wanted. `wake`: the scheduler may have work again.
    """
    if role is WorkerType.Prefill:
        return PrefillRole(port, scheduler, mailboxes, wake, metrics, lease_s=lease_s)
    if role is WorkerType.Decode:
        return DecodeRole(port, scheduler, mailboxes, wake, metrics)
    return AggregatedRole(scheduler)
