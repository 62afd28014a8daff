"""Answers in OpenAI's shape: whole ones and the chunks of a stream."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from dynamo.protocols.disagg import DisaggReport
from dynamo.protocols.routing import RoutingReport


class PromptTokensDetails(Struct, kw_only=True):
    cached_tokens: int  # of the prompt, that needed no prefill


class Usage(Struct, kw_only=True):
    """Tokens that a request took, over all its choices."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | UnsetType | None = UNSET


class WorkerIdInfo(Struct, kw_only=True):
    """The workers that served a request, as upstream names them."""

    decode_worker_id: int  # the instance id
    decode_dp_rank: int
    prefill_worker_id: int | UnsetType = UNSET  # where it was another one


class NvExtResponse(Struct, kw_only=True):
    """What a request's `nvext.extra_fields` asked for."""

    worker_id: WorkerIdInfo | UnsetType = UNSET
    routing: RoutingReport | UnsetType = UNSET
    disaggregation: DisaggReport | UnsetType = UNSET  # asked for with "routing"


class TopLogprob(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None = None


class ChatTokenLogprob(TopLogprob, kw_only=True):
    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(Struct, kw_only=True):
    content: list[ChatTokenLogprob]


class CompletionLogprobs(Struct, kw_only=True):
    """Parallel lists with an entry per token; the first token of an echoed prompt has no logprob."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []  # characters from the start of the choice's text


class FunctionDelta(Struct, kw_only=True):
    name: str | UnsetType | None = UNSET
    arguments: str | UnsetType | None = UNSET


class ToolCallDelta(Struct, kw_only=True):
    """A piece of a tool call; pieces of equal index belong together."""

    index: int = 0
    id: str | UnsetType | None = UNSET
    type: str | UnsetType | None = UNSET
    function: FunctionDelta | UnsetType | None = UNSET


class ChatDelta(Struct, kw_only=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    nvext: NvExtResponse | UnsetType = UNSET


class CompletedFunction(Struct, kw_only=True):
    name: str
    arguments: str


class CompletedToolCall(Struct, kw_only=True):
    id: str
    type: str
    function: CompletedFunction


class ChatAnswer(Struct, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CompletedToolCall] | UnsetType = UNSET


class ChatChoice(Struct, kw_only=True):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatCompletion(Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    nvext: NvExtResponse | UnsetType = UNSET


class CompletionChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(Struct, kw_only=True):
    """A whole text completion, and a chunk of one: they have the same shape."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    nvext: NvExtResponse | UnsetType = UNSET
