"""Requests as OpenAI's clients send them, with the extras that vLLM and upstream made common.

A field that is null or absent is None here. The types say which values a field can take by itself;
`dynamo.protocols.openai.checks` checks what concerns several fields. Unknown names are ignored.
"""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from dynamo.protocols.openai.messages import JsonObject, Message, Tool, ToolChoice
from dynamo.protocols.routing import Priority

INT32_MAX = 2**31 - 1  # engines keep counts in 32 bits
STOP_STRING_CHARS_MAX = 1000  # bounds the work per token
CACHE_SALT_CHARS_MAX = 256

Count = Annotated[int, Meta(ge=0, le=INT32_MAX)]
PositiveCount = Annotated[int, Meta(ge=1, le=INT32_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=STOP_STRING_CHARS_MAX)]


class StreamOptions(Struct, kw_only=True):
    """What a stream carries beside the text."""

    include_usage: bool | None = None


class JsonSchema(Struct, kw_only=True):
    """The `json_schema` of a response format."""

    name: str | None = None
    schema: JsonObject | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class AgentHints(Struct, kw_only=True):
    """What an agent knows of its request and the service could not."""

    priority: Priority | None = None


class NvExt(Struct, kw_only=True):
    """Upstream's extension of the protocol."""

    extra_fields: list[str] | None = None  # what else the response should say; we know "worker_id" and "routing"
    agent_hints: AgentHints | None = None
    backend_instance_id: Annotated[int, Meta(ge=0)] | None = None  # the worker to use
    dp_rank: Count | None = None  # and its data-parallel rank


class GenerationRequest(Struct, kw_only=True):
    """What chat and completions have in common."""

    model: Annotated[str, Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None  # -1 or 0: all tokens
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    seed: Seed | None = None
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]] | None = None

    stop: StopString | Annotated[list[StopString], Meta(max_length=4)] | None = None
    stop_token_ids: list[TokenId] | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None

    response_format: ResponseFormat | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=CACHE_SALT_CHARS_MAX)] | None = None
    nvext: NvExt | None = None


class ChatCompletionRequest(GenerationRequest, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: PositiveCount | None = None
    max_completion_tokens: PositiveCount | None = None  # the newer name, which wins
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: JsonObject | None = None  # further variables for the chat template

    # Known so that they can be refused: see dynamo.llm.support.
    functions: Any = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None


# One text, several texts, the ids of one prompt, or of several; checks refuses a mixture.
Prompt = str | list[str | TokenId | list[TokenId]]


class CompletionRequest(GenerationRequest, kw_only=True):
    """The body of /v1/completions."""

    prompt: Prompt
    max_tokens: Count | None = None  # 0 only with echo
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: PositiveCount | None = None
    suffix: str | None = None


def stop_strings(request: GenerationRequest) -> tuple[str, ...]:
    """The stop strings, whichever form they came in."""
    stop = request.stop
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def choices_per_prompt(request: GenerationRequest) -> int:
    return 1 if request.n is None else request.n


def wants_usage(request: GenerationRequest) -> bool:
    """Whether a stream ends with a chunk that holds the usage."""
    return request.stream_options is not None and bool(request.stream_options.include_usage)


def extra_fields(request: GenerationRequest) -> Collection[str]:
    """What else the response should say."""
    return () if request.nvext is None else request.nvext.extra_fields or ()
