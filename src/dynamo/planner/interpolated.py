"""How fast a worker is, between the points at which it was measured."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from dynamo.planner.bisection import highest
from dynamo.planner.profile import Profile


@dataclass(frozen=True, slots=True)
class Line:
    """Straight from point to point, and level beyond the first and the last."""

    at: Sequence[float]  # ascending, at least one
    values: Sequence[float]

    def __call__(self, x: float) -> float:
        after = bisect_right(self.at, x)
        if after == 0:
            return self.values[0]
        if after == len(self.at):
            return self.values[-1]
        share = (x - self.at[after - 1]) / (self.at[after] - self.at[after - 1])
        before, behind = self.values[after - 1], self.values[after]
        return min(max(before + share * (behind - before), min(before, behind)), max(before, behind))


class InterpolatedModel:
    """A PerfModel: linear between a profile's points, and as at the outermost ones beyond them.

    More tokens or requests never take less time, whatever a noisy measurement said: a point counts at least what those
    before it do. Prompts that are longer than all measured ones take as long as their tokens at the longest one's pace.
    """

    def __init__(self, profile: Profile) -> None:
        """`profile`: that check_profile() has nothing against."""
        lengths = [float(point.prompt_tokens) for point in profile.prefill]
        self._ttft = Line(lengths, list(accumulate((point.ttft_s for point in profile.prefill), max)))
        self._prefill_rate = Line(lengths, [point.tokens_per_s for point in profile.prefill])
        by_context = [(key, list(group)) for key, group in groupby(profile.decode, lambda point: point.context_tokens)]
        self._contexts = [float(context) for context, _ in by_context]
        self._itl = [
            Line([float(p.concurrency) for p in points], list(accumulate((p.itl_s for p in points), max)))
            for _, points in by_context
        ]
        self._most = Line(self._contexts, [float(points[-1].concurrency) for _, points in by_context])
        self._max_kv_tokens = profile.max_kv_tokens

    def prefill_s(self, prompt_tokens: float) -> float:
        return self._ttft(prompt_tokens) * max(1.0, prompt_tokens / self._ttft.at[-1])

    def prefill_tokens_per_s(self, prompt_tokens: float) -> float:
        return self._prefill_rate(prompt_tokens)

    def itl_s(self, context_tokens: float, concurrency: float) -> float:
        times = list(accumulate((line(concurrency) for line in self._itl), max))
        return Line(self._contexts, times)(context_tokens)

    def concurrency(self, context_tokens: float, itl_s: float) -> float:
        """Not more than was measured with such a context, nor than the KV cache holds."""
        most = self._most(context_tokens)
        if self._max_kv_tokens is not None:
            most = min(most, self._max_kv_tokens / max(context_tokens, 1.0))
        if most <= 1.0 or self.itl_s(context_tokens, 1.0) > itl_s:
            return 1.0
        if self.itl_s(context_tokens, most) <= itl_s:
            return most
        return highest(1.0, most, lambda requests: self.itl_s(context_tokens, requests) <= itl_s)
