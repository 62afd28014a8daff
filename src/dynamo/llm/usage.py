"""Counts the tokens of a request, and remembers who served it."""

from dynamo.llm.sequence import TextOutput
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.openai.responses import NvExtResponse, PromptTokensDetails, Usage, WorkerIdInfo


class UsageCounter:
    """Adds up what the outputs of all choices say."""

    __slots__ = ("_cached_tokens", "_prompt_tokens", "_reported", "_worker_id", "completion_tokens")

    def __init__(self) -> None:
        self.completion_tokens = 0
        self._prompt_tokens: int | None = None
        self._cached_tokens: int | None = None
        self._reported: Usage | None = None
        self._worker_id: WorkerId | None = None

    def add(self, output: TextOutput) -> None:
        """Takes everything into account but token_count, which the caller adds to `completion_tokens`."""
        if output.prompt_tokens is not None:
            self._prompt_tokens = (self._prompt_tokens or 0) + output.prompt_tokens
        if output.cached_tokens is not None:
            self._cached_tokens = (self._cached_tokens or 0) + output.cached_tokens
        if output.extra is not None and output.extra.usage is not None:
            self._reported = output.extra.usage
        if self._worker_id is None:
            self._worker_id = output.worker_id

    def usage(self) -> Usage | None:
        """The count; None where a worker that speaks text gave none."""
        if self._reported is not None or self._prompt_tokens is None:
            return self._reported
        usage = Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self._prompt_tokens + self.completion_tokens,
        )
        if self._cached_tokens is not None:
            usage.prompt_tokens_details = PromptTokensDetails(cached_tokens=self._cached_tokens)
        return usage

    def nvext(self) -> NvExtResponse | None:
        """The worker of the first choice that answered, in upstream's shape."""
        if self._worker_id is None:
            return None
        worker_id, dp_rank = self._worker_id.instance_id, self._worker_id.dp_rank
        return NvExtResponse(worker_id=WorkerIdInfo(decode_worker_id=worker_id, decode_dp_rank=dp_rank))
