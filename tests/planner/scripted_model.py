"""A performance model by formula, so that tests can say what a load needs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ScriptedModel:
    """A prompt takes its tokens' time; a step takes as much longer as there are requests in it."""

    tokens_per_s: float = 10_000.0
    step_s: float = 0.01
    request_s: float = 0.001

    def prefill_s(self, prompt_tokens: float) -> float:
        return prompt_tokens / self.tokens_per_s

    def prefill_tokens_per_s(self, prompt_tokens: float) -> float:
        return self.tokens_per_s

    def itl_s(self, context_tokens: float, concurrency: float) -> float:
        return self.step_s + self.request_s * concurrency

    def concurrency(self, context_tokens: float, itl_s: float) -> float:
        return max(1.0, (itl_s - self.step_s) / self.request_s)


class UnknownModel:
    """Knows nothing yet."""

    def prefill_s(self, prompt_tokens: float) -> None:
        return None

    def prefill_tokens_per_s(self, prompt_tokens: float) -> None:
        return None

    def itl_s(self, context_tokens: float, concurrency: float) -> None:
        return None

    def concurrency(self, context_tokens: float, itl_s: float) -> None:
        return None
