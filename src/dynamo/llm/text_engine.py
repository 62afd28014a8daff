"""The stage for workers that speak text: the OpenAI request goes to them as it came, and they answer in chunks.

What a worker yields is taken leniently: chunks of either route, with or without the fields around the choices, whole
messages in place of deltas, or plain strings.
"""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import Struct

from dynamo.errors import HandlerError
from dynamo.llm.logprobs import scored_chat, scored_completion
from dynamo.llm.sequence import ScoredToken, TextExtra, TextOutput
from dynamo.protocols.openai.messages import JsonObject
from dynamo.protocols.openai.responses import ChatLogprobs, CompletionLogprobs, ToolCallDelta, Usage
from dynamo.runtime.context import Context
from dynamo.runtime.handler import Handler, closing


class _Message(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class _Choice(Struct):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    logprobs: JsonObject | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


class TextEngine:
    """A Handler from the request as plain data to TextOutput, over one that yields chunks.

    Raises HandlerError for what is no chunk, or an error in place of one. A choice that gets no finish_reason ends with
    "stop".
    """

    def __init__(self, upstream: Handler[JsonObject, Any]) -> None:
        self._upstream = upstream

    async def __call__(self, request: JsonObject, context: Context) -> AsyncIterator[TextOutput]:
        finished: dict[int, bool] = {}  # by choice
        async with closing(self._upstream(request, context)) as items:
            async for item in items:
                chunk = _chunk(item)
                for choice in chunk.choices:
                    finished[choice.index] = choice.finish_reason is not None or finished.get(choice.index, False)
                    yield _output(choice)
                if chunk.usage is not None:
                    yield TextOutput(extra=TextExtra(usage=chunk.usage))
        for index in [i for i, done in finished.items() if not done] if finished else [0]:
            yield TextOutput(index, finish_reason="stop")


def _chunk(item: object) -> _Chunk:
    if isinstance(item, str):
        return _Chunk(choices=[_Choice(text=item)])
    try:
        chunk = msgspec.convert(item, _Chunk)
    except msgspec.ValidationError as error:
        raise HandlerError(f"The worker sent something that is no chunk: {error}") from error
    if chunk.error is not None:
        raise HandlerError(f"The worker sent an error: {chunk.error}")
    return chunk


def _output(choice: _Choice) -> TextOutput:
    message = choice.delta or choice.message or _Message()
    text = message.content or choice.text or ""
    output = TextOutput(choice.index, text, 1 if text else 0, choice.finish_reason)
    if choice.logprobs is not None:
        output.logprobs = _scored(choice.logprobs)
    if message.reasoning_content or message.tool_calls:
        output.extra = TextExtra(reasoning=message.reasoning_content, tool_calls=message.tool_calls)
    return output


def _scored(logprobs: JsonObject) -> list[ScoredToken]:
    try:
        if "content" in logprobs:
            return scored_chat(msgspec.convert(logprobs, ChatLogprobs))
        return scored_completion(msgspec.convert(logprobs, CompletionLogprobs))
    except ValueError as error:  # also what is no byte, and lists of different length
        raise HandlerError(f"The worker sent logprobs in no shape of OpenAI's: {error}") from error
