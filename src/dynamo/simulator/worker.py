"""One simulated worker: the mocker's scheduler, stepped as the mocker's shell does it, in virtual time."""

from collections.abc import Callable

from dynamo.engines.mocker.scheduler import Scheduler, StepResult
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.protocols.generation import PreprocessedRequest
from dynamo.simulator.event_loop import EventLoop

StepObserver = Callable[["SimulatedWorker", StepResult, float], None]
WorkerListener = Callable[["SimulatedWorker", float], None]


class SimulatedWorker:
    """A step begins when the last one ends or, after a pause, when there is work; its outputs are due at its end."""

    def __init__(
        self,
        index: int,
        scheduler: Scheduler,
        loop: EventLoop,
        step_ended: StepObserver,
        step_began: StepObserver | None = None,
        tiers_changed: WorkerListener | None = None,
        became_idle: WorkerListener | None = None,
    ) -> None:
        """`step_ended` and `step_began` are called with this worker, what the step does and the time, seconds.

        `tiers_changed`: with this worker and the time, when its tiers may have changed between steps. `became_idle`:
        likewise, when it has done all that it was given.
        """
        self.index = index
        self.scheduler = scheduler
        self.step_began_s = 0.0
        self._loop = loop
        self._step_ended = step_ended
        self._step_began = step_began
        self._tiers_changed = tiers_changed
        self._became_idle = became_idle
        self._step: StepResult | None = None  # under way
        self._waking = False
        self._killed = False
        self._alarm_s: float | None = None  # when the tiers are looked after, should there be no step then

    @property
    def idle(self) -> bool:
        """Whether it works at nothing, and keeps nothing for others."""
        load = self.scheduler.load()
        return self._step is None and not (load.running_requests or load.waiting_requests or self.scheduler.held)

    def kill(self) -> None:
        """Nothing more comes of it, not even what the step under way has made."""
        self._killed = True

    def submit(self, request: PreprocessedRequest, now_s: float) -> SequenceState:
        """Queues a request; raises what Scheduler.add() raises."""
        sequence = self.scheduler.add(request)
        self._wake(now_s)
        return sequence

    def received(self, sequence: SequenceState, now_s: float) -> None:
        """A prompt's KV cache has come from another worker."""
        self.scheduler.received(sequence)
        self._wake(now_s)

    def release(self, sequence: SequenceState, now_s: float) -> None:
        """Nobody needs the KV cache any more that was prefilled for others."""
        self.scheduler.release(sequence)
        self._wake(now_s)
        self._tell_if_idle(now_s)

    def abort(self, sequence: SequenceState, now_s: float) -> None:
        """Ends a request that cannot go on here."""
        self.scheduler.abort(sequence)
        self._wake(now_s)
        self._tell_if_idle(now_s)

    def _wake(self, now_s: float) -> None:
        if self._step is None and not self._waking and self.scheduler.has_work:
            self._waking = True  # what comes in this same moment is in the first step too
            self._loop.at(now_s, self._begin)

    def _begin(self, now_s: float) -> None:
        self._waking = False
        if self._killed:
            return
        self.step_began_s = now_s
        self.scheduler.advance(now_s)
        self._step = step = self.scheduler.step()
        self._loop.at(now_s + step.duration_s, self._end)
        if self._step_began is not None:
            self._step_began(self, step, now_s)

    def _end(self, now_s: float) -> None:
        if self._killed:
            return
        step = self._step
        assert step is not None
        self.scheduler.advance(now_s)
        self._step_ended(self, step, now_s)
        if self.scheduler.has_work:
            self._begin(now_s)
        else:
            self._step = None
            self._set_alarm(now_s)
            self._tell_if_idle(now_s)

    def _tell_if_idle(self, now_s: float) -> None:
        if self._became_idle is not None and self.idle:
            self._became_idle(self, now_s)

    def _set_alarm(self, now_s: float) -> None:
        next_s = self.scheduler.next_s
        if next_s is not None and (self._alarm_s is None or next_s < self._alarm_s):
            self._alarm_s = max(now_s, next_s)
            self._loop.at(self._alarm_s, self._alarm)

    def _alarm(self, now_s: float) -> None:
        if now_s != self._alarm_s or self._killed:  # another one was set in its place
            return
        self._alarm_s = None
        if self._step is None and not self._waking:
            self.scheduler.advance(now_s)
            if self._tiers_changed is not None:
                self._tiers_changed(self, now_s)
            self._wake(now_s)
            self._set_alarm(now_s)
