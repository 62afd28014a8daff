"""How much is asked for: traffic, summed up over some time. Pure."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dynamo.planner.decision import Forecast
from dynamo.planner.observation import Traffic

WINDOW_S = 30.0  # what the load policy calls now
_SIGMAS = 2.0  # arrivals that differ from the mean by so many standard deviations are not chance
_CHANGE_SIGMAS = 3.0  # of any of the moments of a window: more, as there are several
_ENTRIES_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Requests that arrive and what they are like. A mean that nobody could tell is None."""

    requests_per_s: float
    at_least_per_s: float  # what is certain of it: so many came that chance alone does not explain it
    at_most_per_s: float
    prefill_tokens: float | None  # mean, of a prompt, that are not cached
    prompt_tokens: float | None
    output_tokens: float | None

    @classmethod
    def exactly(
        cls,
        requests_per_s: float,
        *,
        prefill_tokens: float | None,
        prompt_tokens: float | None,
        output_tokens: float | None,
    ) -> "Demand":
        """At a rate that chance has no part in."""
        return cls(
            requests_per_s=requests_per_s,
            at_least_per_s=requests_per_s,
            at_most_per_s=requests_per_s,
            prefill_tokens=prefill_tokens,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )

    @property
    def context_tokens(self) -> float | None:
        """Of a request in mid-output."""
        if self.prompt_tokens is None or self.output_tokens is None:
            return None
        return self.prompt_tokens + self.output_tokens / 2

    def at(self, requests_per_s: float) -> "Demand":
        """The like of these requests, at exactly that rate."""
        return replace(self, requests_per_s=requests_per_s, at_least_per_s=requests_per_s, at_most_per_s=requests_per_s)

    def told(self) -> Forecast:
        """For a decision."""
        return Forecast(
            requests_per_s=self.requests_per_s,
            prompt_tokens=self.prefill_tokens or 0.0,
            output_tokens=self.output_tokens or 0.0,
        )


@dataclass(slots=True, kw_only=True)
class _Lengths:
    """Means that were known last, for times in which nobody tells."""

    prompt: float | None = None
    cached: float = 0.0
    output: float | None = None

    def renew(self, traffic: Iterable[Traffic]) -> None:
        entries = list(traffic)
        prompts = [entry for entry in entries if entry.prompt_tokens is not None]
        if prompts:
            self.prompt = _mean((entry.prompt_tokens or 0.0, entry.requests) for entry in prompts)
            cached = _mean((entry.cached_tokens or 0.0, entry.requests) for entry in prompts)
            self.cached = min(cached, self.prompt)
        outputs = [(entry.output_tokens, entry.requests) for entry in entries if entry.output_tokens is not None]
        if outputs:
            self.output = _mean(outputs)


class TrafficWindow:
    """The traffic of the last `span_s`, or of the last observation if that is longer.

    A rate that has certainly changed meanwhile is that since the change; what requests are like is so of all.
    """

    def __init__(self, span_s: float = WINDOW_S) -> None:
        self._span_s = span_s
        self._entries: deque[tuple[float, Traffic]] = deque(maxlen=_ENTRIES_MAX)
        self._changed_s = -math.inf  # what was observed before then had another rate
        self._lengths = _Lengths()

    def add(self, now_s: float, traffic: Traffic) -> None:
        entries = self._entries
        entries.append((now_s, traffic))
        while len(entries) > 1 and not 0 <= now_s - entries[0][0] < self._span_s:  # also of a clock that was set back
            entries.popleft()
        self._lengths.renew(entry for _, entry in entries)
        self._changed_s = min(self._changed_s, now_s)
        alike = [(at_s, entry) for at_s, entry in entries if at_s >= self._changed_s]
        since = _change([entry for _, entry in alike])
        self._changed_s = alike[since][0]

    def demand(self) -> Demand:
        """Needs at least one observation."""
        traffic = [entry for at_s, entry in self._entries if at_s >= self._changed_s]
        requests = sum(entry.requests for entry in traffic)
        duration_s = sum(entry.duration_s for entry in traffic)
        chance = _SIGMAS * math.sqrt(requests)  # arrivals scatter like a Poisson process at best
        return Demand(
            requests_per_s=requests / duration_s,
            at_least_per_s=max(0.0, requests - chance) / duration_s,
            at_most_per_s=(requests + chance) / duration_s,
            prefill_tokens=None if self._lengths.prompt is None else self._lengths.prompt - self._lengths.cached,
            prompt_tokens=self._lengths.prompt,
            output_tokens=self._lengths.output,
        )


class IntervalSum:
    """The traffic between two ticks of the throughput policy, which come once in many observations."""

    def __init__(self) -> None:
        self._traffic: deque[Traffic] = deque(maxlen=_ENTRIES_MAX)
        self._lengths = _Lengths()

    def add(self, traffic: Traffic) -> None:
        self._traffic.append(traffic)

    def take(self) -> Demand | None:
        """All since the last call; None: there was no observation."""
        traffic = list(self._traffic)
        self._traffic.clear()
        if not traffic:
            return None
        self._lengths.renew(traffic)
        rate = sum(entry.requests for entry in traffic) / sum(entry.duration_s for entry in traffic)
        prompt = self._lengths.prompt
        return Demand.exactly(
            rate,
            prefill_tokens=None if prompt is None else prompt - self._lengths.cached,
            prompt_tokens=prompt,
            output_tokens=self._lengths.output,
        )


def _change(traffic: Sequence[Traffic]) -> int:
    """Since which of these observations the rate is another, beyond chance; 0: it is one and the same all the time.

    Of the ways to part them in two, that whose rates differ most, in standard deviations of their difference if all
    came from one Poisson process.
    """
    requests = sum(entry.requests for entry in traffic)
    duration_s = sum(entry.duration_s for entry in traffic)
    if not requests:
        return 0
    since, most = 0, _CHANGE_SIGMAS
    before, before_s = 0.0, 0.0
    for index, entry in enumerate(traffic[:-1], start=1):
        before, before_s = before + entry.requests, before_s + entry.duration_s
        after, after_s = requests - before, duration_s - before_s
        scatter = math.sqrt(requests / before_s / after_s)  # sqrt(rate * (1/before_s + 1/after_s))
        differs = abs(after / after_s - before / before_s) / scatter
        if differs > most:
            since, most = index, differs
    return since


def _mean(weighted: Iterable[tuple[float, float]]) -> float:
    """Of (value, requests) pairs; a value counts once at least, even if no request arrived meanwhile."""
    pairs = [(value, max(requests, 1.0)) for value, requests in weighted]
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
