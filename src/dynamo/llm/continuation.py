"""One sequence across all the workers that make it: what has come of it, and what to ask the next one for. Pure."""

import msgspec

from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, StopConditions
from dynamo.tokens import token_array


class Continuation:
    """Begins as the client's request; each output that passes brings it forward."""

    __slots__ = ("_request", "_room", "begun", "finished", "generated", "lost_by")

    def __init__(self, request: PreprocessedRequest, context_length: int | None = None) -> None:
        """`context_length` of the model, in tokens, if it is known."""
        self._request = request
        self._room = None if context_length is None else context_length - len(request.token_ids)
        self.lost_by: list[int] = []  # as in the request: once for each loss
        self.generated = token_array()  # so far
        self.begun = False  # there was an output, perhaps one without tokens
        self.finished = False  # the output with the finish_reason has passed, or no more is wanted

    @property
    def pinned(self) -> bool:
        """Whether the client wants one worker and no other."""
        return self._request.target is not None

    @property
    def within_grammar(self) -> bool:
        """Whether the next token depends on where in a grammar the sequence is: engines only begin at its start."""
        return self._request.guided_decoding is not None and bool(self.generated)

    def request(self) -> PreprocessedRequest:
        """For the next worker. Any engine does right by it, even one that takes resumed tokens for prompt."""
        request, done = self._request, len(self.generated)
        if not self.begun:
            return msgspec.structs.replace(request, lost_by=list(self.lost_by))
        conditions = request.stop_conditions
        max_tokens = conditions.max_tokens
        return msgspec.structs.replace(
            request,
            token_ids=request.token_ids + self.generated,
            resumed_tokens=done,
            stop_conditions=msgspec.structs.replace(
                conditions,
                max_tokens=None if max_tokens is None else max_tokens - done,
                min_tokens=max(0, conditions.min_tokens - done),
            ),
            output_options=msgspec.structs.replace(request.output_options, prompt_logprobs=None),
            explain_routing=False,
            lost_by=list(self.lost_by),
        )

    def end(self) -> LLMEngineOutput | None:
        """The end that the tokens have reached without the engine having said so; None where more is to come.

        Engines say it along with the last token. One that says it later may be lost in between.
        """
        conditions, done = self._request.stop_conditions, len(self.generated)
        if not done:
            return None
        last = self.generated[-1]
        if done >= conditions.min_tokens and last in _end_ids(self._request, conditions):
            stop_reason = last if last in conditions.stop_token_ids else None
            return LLMEngineOutput(finish_reason=FinishReason.STOP, stop_reason=stop_reason)
        limits = [limit for limit in (conditions.max_tokens, self._room) if limit is not None]
        return LLMEngineOutput(finish_reason=FinishReason.LENGTH) if limits and done >= min(limits) else None


def _end_ids(request: PreprocessedRequest, conditions: StopConditions) -> list[int]:
    return conditions.stop_token_ids + ([] if conditions.ignore_eos else request.eos_token_ids)
