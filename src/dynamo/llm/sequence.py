"""What goes into the detokenizer and what comes out: one sequence as text."""

from dataclasses import dataclass

import msgspec

from dynamo.protocols.disagg import DisaggReport
from dynamo.protocols.generation import PreprocessedRequest, WorkerId
from dynamo.protocols.openai.responses import ToolCallDelta, Usage
from dynamo.protocols.routing import RoutingReport


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRequest:
    """One sequence to continue, and how its tokens become the text of a choice."""

    engine_request: PreprocessedRequest
    index: int = 0  # of the choice
    stop: tuple[str, ...] = ()  # strings that end it and are not part of it
    continues_prompt: bool = False  # the text goes on where the prompt ends, rather than being a new turn
    echo: str | None = None  # the prompt, if the choice's text begins with it
    echo_only: bool = False  # and ends with it
    counts_prompt: bool = True  # the usage counts the prompt; of several choices that share one, only the first


class TokenScore(msgspec.Struct):
    """A token and the natural logarithm of its probability, which the first token of a prompt does not have."""

    text: str
    raw: bytes  # a token can be a part of a character
    logprob: float | None


class ScoredToken(msgspec.Struct):
    """A token of the text, the likeliest ones at its place, and where its text starts."""

    chosen: TokenScore
    top: list[TokenScore]
    offset: int  # characters from the start of the choice's text


class TextExtra(msgspec.Struct):
    """What only a worker that speaks text can say."""

    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    usage: Usage | None = None  # its own count, which replaces ours


class TextOutput(msgspec.Struct):
    """What one step adds to one choice. One is made per token, and a frozen dataclass would take 15 times as long."""

    index: int = 0
    text: str = ""
    token_count: int = 0  # tokens that the engine made; text may be held back or dropped
    finish_reason: str | None = None  # in OpenAI's words; set on the last output of a choice
    logprobs: list[ScoredToken] | None = None  # of the tokens whose text is now out
    prompt_tokens: int | None = None  # once per prompt
    cached_tokens: int | None = None  # of those, that needed no prefill
    worker_id: WorkerId | None = None  # on the first output of a choice
    routing: RoutingReport | None = None  # likewise, where it was asked for
    disaggregation: DisaggReport | None = None  # likewise, and whenever another worker has prefilled the prompt
    extra: TextExtra | None = None
