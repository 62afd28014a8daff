"""Goodput: the requests per second that a fleet answers as fast as was promised."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SHARE_MIN = 0.9  # of the requests, that must be answered in time
RATE_STEP = 1.03  # rates are powers of it: what the search finds is that exact
_STRIDE = 8  # steps: a quarter more


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What is promised to each request."""

    ttft_s: float
    tpot_s: float  # the mean time between two tokens of the request


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the requests at one rate. A time per request, in any order."""

    rate_per_s: float
    ttft_s: Sequence[float]
    tpot_s: Sequence[float]
    gap_p99_s: float  # between two tokens, of all requests together
    hit_ratio: float  # prompt tokens that needed no prefill, over all
    local_share: float  # of the requests, that were prefilled where they were decoded

    def share(self, targets: Targets) -> float:
        """Of the requests, that met both targets."""
        times = zip(self.ttft_s, self.tpot_s, strict=True)
        return sum(ttft <= targets.ttft_s and tpot <= targets.tpot_s for ttft, tpot in times) / len(self.ttft_s)

    def goodput_per_s(self, targets: Targets) -> float:
        return self.rate_per_s * self.share(targets)


def search(run: Callable[[float], Outcome], targets: Targets, start_per_s: float) -> Outcome | None:
    """The outcome at the highest rate at which SHARE_MIN of the requests meet the targets; None where none is.

    Goes up or down from about `start_per_s` in strides until the answer changes, then halves the interval: a fleet that
    fails at one rate is taken to fail at all above. Below one request per second nothing is looked for.
    """
    outcomes: dict[int, Outcome] = {}

    def meets(step: int) -> bool:
        outcomes[step] = run(RATE_STEP**step)
        return outcomes[step].share(targets) >= SHARE_MIN

    good = bad = _step_near(start_per_s)
    while not meets(good):
        if good == 0:
            return None
        bad, good = good, max(good - _STRIDE, 0)
    while bad <= good:
        if meets(bad := good + _STRIDE):
            good = bad
    while bad - good > 1:
        middle = (good + bad) // 2
        if meets(middle):
            good = middle
        else:
            bad = middle
    return outcomes[good]


def _step_near(rate_per_s: float) -> int:
    """The power of RATE_STEP that is next to it, at least 0."""
    step = 0
    while RATE_STEP ** (step + 1) <= rate_per_s:
        step += 1
    return step
