"""A simulated engine that goes on where others have prefilled. It serves whole requests too."""

from collections.abc import Callable, Mapping

from dynamo.engines.mocker.handoff import HandoffParams
from dynamo.engines.mocker.kv_port import KvPort
from dynamo.engines.mocker.kv_receiver import KvReceiver
from dynamo.engines.mocker.mailbox import Mailbox
from dynamo.engines.mocker.role import refuse_prefill_only
from dynamo.engines.mocker.scheduler import Scheduler, StepResult
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.errors import DynamoError
from dynamo.protocols.generation import PreprocessedRequest
from dynamo.telemetry.kv_transfer_metrics import KvTransferMetrics


class DecodeRole:
    """A Role. Whatever becomes of a request with a handoff, the holder is told when nobody needs it any more."""

    def __init__(
        self,
        port: KvPort,
        scheduler: Scheduler,
        mailboxes: Mapping[SequenceState, Mailbox],
        wake: Callable[[], None],
        metrics: KvTransferMetrics,
    ) -> None:
        """`mailboxes`: of those whose outputs are still wanted. `wake`: the scheduler may have work again."""
        self._scheduler = scheduler
        self._mailboxes = mailboxes
        self._wake = wake
        self._transport = port.transport
        self._receiver = KvReceiver(port.agent, port.transport, metrics, block_size=scheduler.config.block_size)
        self._handoffs: dict[SequenceState, HandoffParams] = {}  # of those that wait for their turn

    def start(self) -> None:
        pass

    async def vacate(self) -> None:
        await self._receiver.until_idle()

    async def close(self) -> None:
        await self._receiver.close()

    def check(self, request: PreprocessedRequest) -> None:
        refuse_prefill_only(request)
        if request.handoff is not None:
            HandoffParams.of(request.handoff)

    def added(self, sequence: SequenceState, request: PreprocessedRequest) -> None:
        if request.handoff is not None:
            self._handoffs[sequence] = HandoffParams.of(request.handoff)

    def step_began(self, step: StepResult) -> None:
        for sequence, tokens in step.receiving.items():
            params = self._handoffs.pop(sequence)
            if tokens:
                self._receiver.begin(sequence, params, tokens, self._received)
            else:
                self._receiver.end(params)

    def step_ended(self, step: StepResult) -> None:
        pass

    async def over(self, sequence: SequenceState) -> None:
        pass

    def give_up(self, sequence: SequenceState) -> None:
        params = self._handoffs.pop(sequence, None)
        if params is not None:
            self._receiver.end(params)
        if not self._receiver.cancel(sequence):
            self._scheduler.abort(sequence)

    def _received(self, sequence: SequenceState, error: DynamoError | None) -> None:
        mailbox = self._mailboxes.get(sequence)
        if error is None:
            self._scheduler.received(sequence)
        else:
            self._scheduler.abort(sequence)
            if mailbox is not None:
                mailbox.fail(error)
        self._wake()
