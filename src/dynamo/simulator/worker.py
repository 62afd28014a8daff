"""One simulated worker: the mocker's scheduler, stepped as the mocker's shell does it, in virtual time."""

from collections.abc import Callable

from dynamo.engines.mocker.scheduler import Scheduler, StepResult
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.protocols.generation import PreprocessedRequest
from dynamo.simulator.event_loop import EventLoop

StepEnded = Callable[["SimulatedWorker", StepResult, float], None]


class SimulatedWorker:
    """A step begins when the last one ends or, after a pause, when a request comes; its outputs are due at its end."""

    def __init__(self, index: int, scheduler: Scheduler, loop: EventLoop, step_ended: StepEnded) -> None:
        """`step_ended` is called with this worker, what the step did and the time, seconds."""
        self.index = index
        self.scheduler = scheduler
        self.step_began_s = 0.0
        self._loop = loop
        self._step_ended = step_ended
        self._step: StepResult | None = None  # under way
        self._waking = False

    def submit(self, request: PreprocessedRequest, now_s: float) -> SequenceState:
        """Queues a request; raises what Scheduler.add() raises."""
        sequence = self.scheduler.add(request)
        if self._step is None and not self._waking:
            self._waking = True  # what comes in this same moment is in the first step too
            self._loop.at(now_s, self._begin)
        return sequence

    def _begin(self, now_s: float) -> None:
        self._waking = False
        self.step_began_s = now_s
        self._step = step = self.scheduler.step()
        self._loop.at(now_s + step.duration_s, self._end)

    def _end(self, now_s: float) -> None:
        step = self._step
        assert step is not None
        self._step_ended(self, step, now_s)
        if self.scheduler.has_work:
            self._begin(now_s)
        else:
            self._step = None
