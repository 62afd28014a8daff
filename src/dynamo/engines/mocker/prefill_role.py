"""A simulated engine that prefills for others. It serves whole requests too, if it is given any."""

import asyncio
from collections.abc import Callable, Mapping

from dynamo.engines.mocker.held_prefills import HeldPrefills
from dynamo.engines.mocker.kv_port import KvPort
from dynamo.engines.mocker.mailbox import Mailbox
from dynamo.engines.mocker.role import refuse_handoff
from dynamo.engines.mocker.scheduler import Scheduler, StepResult
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest
from dynamo.runtime.background import in_background
from dynamo.telemetry.kv_transfer_metrics import KvTransferMetrics


class PrefillRole:
    """A Role. The only output of a prompt that is prefilled for others leaves when they can get at its KV cache."""

    def __init__(
        self,
        port: KvPort,
        scheduler: Scheduler,
        mailboxes: Mapping[SequenceState, Mailbox],
        wake: Callable[[], None],
        metrics: KvTransferMetrics,
        *,
        lease_s: float,
    ) -> None:
        """`mailboxes`: of those whose outputs are still wanted. `wake`: the scheduler may have work again.

        `lease_s`: see HeldPrefills.
        """
        self._scheduler = scheduler
        self._mailboxes = mailboxes
        self._agent = port.agent
        self._transport = port.transport
        self._held = HeldPrefills(scheduler, self._transport, wake, metrics, lease_s=lease_s)
        self._handing_over: set[asyncio.Task[None]] = set()  # at most one for each block
        self._metadata = b""

    def start(self) -> None:
        self._metadata = self._agent.metadata()
        self._agent.answer_with(self._held.answer)

    async def vacate(self) -> None:
        while self._handing_over:
            await asyncio.wait(self._handing_over)
        await self._held.until_none()

    async def close(self) -> None:
        for task in self._handing_over:
            task.cancel()
        if self._handing_over:
            await asyncio.wait(self._handing_over)
        self._held.close()

    def check(self, request: PreprocessedRequest) -> None:
        refuse_handoff(request)

    def added(self, sequence: SequenceState, request: PreprocessedRequest) -> None:
        pass

    def step_began(self, step: StepResult) -> None:
        pass

    def step_ended(self, step: StepResult) -> None:
        for sequence in [sequence for sequence in step.outputs if sequence.prefill_only]:
            task = in_background(self._hand_over(sequence, step.outputs.pop(sequence)), "hand over a prompt")
            self._handing_over.add(task)
            task.add_done_callback(self._handing_over.discard)

    async def over(self, sequence: SequenceState) -> None:
        await self._held.over(sequence)

    def give_up(self, sequence: SequenceState) -> None:
        self._scheduler.abort(sequence)
        if sequence.prefill_only:
            self._held.give_up(sequence)

    async def _hand_over(self, sequence: SequenceState, output: LLMEngineOutput) -> None:
        if sequence in self._mailboxes:
            output.handoff = await self._held.hold(sequence, self._metadata)
        mailbox = self._mailboxes.get(sequence)
        if mailbox is None:  # given up while the step lasted, or meanwhile
            self._held.release(sequence)
        else:
            mailbox.put(output)
