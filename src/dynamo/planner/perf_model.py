"""How fast one worker is. Pure."""

from typing import Protocol


class PerfModel(Protocol):
    """What a policy asks. Seconds and tokens; None: nothing is known yet, which is never taken for zero."""

    def prefill_s(self, prompt_tokens: float) -> float | None:
        """How long a worker computes a prompt of that length that it does not have cached, alone."""
        ...

    def prefill_tokens_per_s(self, prompt_tokens: float) -> float | None:
        """Prompt tokens that a worker computes in a second when there are always further prompts of that length."""
        ...

    def itl_s(self, context_tokens: float, concurrency: float) -> float | None:
        """Time between two tokens of a request, with that many requests of that context at once on a worker."""
        ...

    def concurrency(self, context_tokens: float, itl_s: float) -> float | None:
        """With how many requests of that context at once a worker keeps that time between tokens: at least 1."""
        ...
