"""What becomes of a simulated engine's steps and requests by the part that it has in them."""

from typing import Protocol

from dynamo.engines.mocker.scheduler import Scheduler, StepResult
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.errors import HandoffLostError, InvalidRequestError
from dynamo.protocols.generation import PreprocessedRequest


class Role(Protocol):
    """The engine calls it at these moments."""

    def start(self) -> None:
        """Called once, with the port started."""
        ...

    async def vacate(self) -> None:
        """No more requests come: returns when nothing is under way or kept for others, be it that its time is up."""
        ...

    async def close(self) -> None:
        """Before the port is closed. Idempotent, and possible without start()."""
        ...

    def check(self, request: PreprocessedRequest) -> None:
        """Raises InvalidRequestError for what is another role's, HandoffLostError for a handoff that is of no use."""
        ...

    def added(self, sequence: SequenceState, request: PreprocessedRequest) -> None:
        """A request that has passed check() waits for its turn."""
        ...

    def step_began(self, step: StepResult) -> None:
        """The outputs are not due yet."""
        ...

    def step_ended(self, step: StepResult) -> None:
        """The outputs are due. What it takes out of them, it delivers itself."""
        ...

    async def over(self, sequence: SequenceState) -> None:
        """Called when its last output was taken: returns when nobody will come for what it holds, or at give_up()."""
        ...

    def give_up(self, sequence: SequenceState) -> None:
        """Nobody waits for this sequence any more: frees what it holds, at once or very soon. Idempotent."""
        ...


class AggregatedRole:
    """All of each request: nothing is added."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def start(self) -> None:
        pass

    async def vacate(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def check(self, request: PreprocessedRequest) -> None:
        refuse_prefill_only(request)
        refuse_handoff(request)

    def added(self, sequence: SequenceState, request: PreprocessedRequest) -> None:
        pass

    def step_began(self, step: StepResult) -> None:
        pass

    def step_ended(self, step: StepResult) -> None:
        pass

    async def over(self, sequence: SequenceState) -> None:
        pass

    def give_up(self, sequence: SequenceState) -> None:
        self._scheduler.abort(sequence)


def refuse_prefill_only(request: PreprocessedRequest) -> None:
    """Raises InvalidRequestError where that is asked for."""
    if request.prefill_only:
        raise InvalidRequestError("this worker does not prefill for others: it is no --disaggregation-mode prefill")


def refuse_handoff(request: PreprocessedRequest) -> None:
    """Raises HandoffLostError where there is one."""
    if request.handoff is not None:
        raise HandoffLostError("this worker takes no handoffs: it is no --disaggregation-mode decode")
