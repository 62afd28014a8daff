"""OpenAI's HTTP protocol: requests, answers, and the way from a body to a request."""

from dynamo.protocols.openai.decode import decode_chat, decode_completion, decode_object
from dynamo.protocols.openai.error_body import ErrorBody, error_body
from dynamo.protocols.openai.messages import ContentPart, JsonObject, Message, Tool, ToolCall
from dynamo.protocols.openai.models import Model, ModelList
from dynamo.protocols.openai.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    NvExt,
    ResponseFormat,
    StreamOptions,
)
from dynamo.protocols.openai.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    Usage,
)

__all__ = [
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "Completion",
    "CompletionRequest",
    "ContentPart",
    "ErrorBody",
    "GenerationRequest",
    "JsonObject",
    "Message",
    "Model",
    "ModelList",
    "NvExt",
    "ResponseFormat",
    "StreamOptions",
    "Tool",
    "ToolCall",
    "Usage",
    "decode_chat",
    "decode_completion",
    "decode_object",
    "error_body",
]
