"""Counts the tokens of a request, and remembers who served it and why."""

from collections.abc import Collection

from msgspec import UNSET, UnsetType

from dynamo.llm.sequence import TextOutput
from dynamo.protocols.disagg import DisaggReport
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.openai.responses import NvExtResponse, PromptTokensDetails, Usage, WorkerIdInfo
from dynamo.protocols.routing import RoutingReport


class UsageCounter:
    """Adds up what the outputs of all choices say."""

    __slots__ = (
        "_cached_tokens",
        "_disaggregation",
        "_prompt_tokens",
        "_reported",
        "_routing",
        "_worker_id",
        "completion_tokens",
    )

    def __init__(self) -> None:
        self.completion_tokens = 0
        self._prompt_tokens: int | None = None
        self._cached_tokens: int | None = None
        self._reported: Usage | None = None
        self._worker_id: WorkerId | None = None
        self._routing: RoutingReport | None = None
        self._disaggregation: DisaggReport | None = None

    def add(self, output: TextOutput) -> None:
        """Takes everything into account but token_count, which the caller adds to `completion_tokens`."""
        if output.prompt_tokens is not None:
            self._prompt_tokens = (self._prompt_tokens or 0) + output.prompt_tokens
        if output.cached_tokens is not None:
            self._cached_tokens = (self._cached_tokens or 0) + output.cached_tokens
        if output.extra is not None and output.extra.usage is not None:
            self._reported = output.extra.usage
        if self._worker_id is None:
            self._worker_id, self._routing = output.worker_id, output.routing
            self._disaggregation = output.disaggregation

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

    def nvext(self, fields: Collection[str]) -> NvExtResponse | UnsetType:
        """Those of `fields` that are known, of the first choice that answered; the worker in upstream's shape."""
        answer = NvExtResponse()
        if "worker_id" in fields and self._worker_id is not None:
            answer.worker_id = WorkerIdInfo(
                decode_worker_id=self._worker_id.instance_id, decode_dp_rank=self._worker_id.dp_rank
            )
            if self._disaggregation is not None and self._disaggregation.prefill == "remote":
                answer.worker_id.prefill_worker_id = self._disaggregation.worker_id or UNSET
        if "routing" in fields:
            answer.routing, answer.disaggregation = self._routing or UNSET, self._disaggregation or UNSET
        return UNSET if answer == NvExtResponse() else answer
