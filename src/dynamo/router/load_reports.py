"""What one worker says of its load, held against what routers have told of. Pure.

A router counts what it has sent, exactly and at once; but others may use the same worker, and the end of a request may
never be told. So workers are asked again and again: what one has beyond the router's count is somebody else's, and what
is counted for one that has been idle for a while is nobody's.

A report is a snapshot that travels: when it arrives, some of what it speaks of may have ended. It is therefore held
against the highest that the router has counted since it asked, so that a request of its own never looks foreign.
"""

from dynamo.protocols.load import WorkerLoad
from dynamo.router.sequences import ActiveSequences, WorkerActivity

_UNANSWERED_MAX = 3  # then what it had said is too old
_IDLE_S = 5.0  # longer than a request is on its way to its worker


class LoadReports:
    """The reports of one worker, of which `sequences` has that activity."""

    def __init__(self, sequences: ActiveSequences, activity: WorkerActivity) -> None:
        self._sequences = sequences
        self._activity = activity
        self._unanswered = 0  # questions
        self._idle_since_s: float | None = None  # the first of the reports that say so, up to the latest

    def expect(self) -> None:
        """The worker is being asked, or has just told unasked and will again."""
        if self._unanswered == _UNANSWERED_MAX:
            self._sequences.set_foreign(self._activity, requests=0, prefill_tokens=0, blocks=0)
            self._idle_since_s = None
        self._unanswered += 1
        self._activity.reset_peaks()

    def take(self, load: WorkerLoad, now_s: float) -> list[str]:
        """Its answer; returns the requests that it cannot have any more, which are freed."""
        self._unanswered = 0
        activity = self._activity
        requests = load.running_requests + load.waiting_requests
        own_requests = activity.requests_peak - activity.foreign_requests
        own_blocks = activity.blocks_peak - activity.foreign_blocks
        self._sequences.set_foreign(
            activity,
            requests=max(0, requests - own_requests),
            prefill_tokens=max(0, (load.prefill_tokens or 0) - activity.pending_prompt_tokens_peak),
            blocks=max(0, load.kv_used_blocks - own_blocks),
        )
        if requests or load.prefill_tokens != 0:  # an engine may say between two steps that nothing runs
            self._idle_since_s = None
            return []
        return self._idle(now_s)

    def _idle(self, now_s: float) -> list[str]:
        """The worker says that it has nothing to do.

        Once it has said so for a while, requests that have given no sign in that time are not on their way any more
        either.
        """
        if self._idle_since_s is None:
            self._idle_since_s = now_s
        before_s = now_s - _IDLE_S
        return self._sequences.sweep_worker(self._activity, before_s) if self._idle_since_s <= before_s else []
