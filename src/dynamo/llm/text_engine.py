"""The stage for workers that speak text: the OpenAI request goes to them as it came, and they answer in chunks.

What a worker yields is taken leniently: chunks of either route, with or without the fields around the choices, whole
messages in place of deltas, or plain strings.
"""

from typing import Any

import msgspec
from msgspec import Struct

from dynamo.errors import HandlerError
from dynamo.llm.logprobs import scored_chat, scored_completion
from dynamo.llm.sequence import ScoredToken, TextExtra, TextOutput
from dynamo.protocols.generation import TextEngineOutput
from dynamo.protocols.openai.messages import JsonObject
from dynamo.protocols.openai.responses import ChatLogprobs, CompletionLogprobs, ToolCallDelta, Usage
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver, Stage


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
    """A Stage from the request as plain data to TextOutput, over one that deals in chunks.

    Raises HandlerError for what is no chunk, or an error in place of one. A choice that gets no finish_reason ends with
    "stop".
    """

    def __init__(self, chunks: Stage[JsonObject, TextEngineOutput]) -> None:
        self._chunks = chunks

    async def __call__(self, request: JsonObject, context: Context, deliver: Deliver[TextOutput]) -> None:
        text = _Text(deliver)
        await self._chunks(request, context, text.push)
        text.end()


class _Text:
    """Delivers chunks as text, and knows which choices have ended."""

    __slots__ = ("_deliver", "_finished", "_wanted")

    def __init__(self, deliver: Deliver[TextOutput]) -> None:
        self._deliver = deliver
        self._wanted = True
        self._finished: dict[int, bool] = {}  # by choice

    def push(self, output: TextEngineOutput) -> bool:
        chunk = _chunk(output.chunk)
        outputs = [_output(choice) for choice in chunk.choices]
        for text in outputs:
            self._finished[text.index] = text.finish_reason is not None or self._finished.get(text.index, False)
        if chunk.usage is not None:
            outputs.append(TextOutput(extra=TextExtra(usage=chunk.usage)))
        if output.worker_id is not None:
            outputs = outputs or [TextOutput()]
            outputs[0].worker_id = output.worker_id
        self._wanted = all(self._deliver(text) for text in outputs)
        return self._wanted

    def end(self) -> None:
        """Finishes the choices that the worker has left open."""
        if self._wanted:
            unfinished = [i for i, done in self._finished.items() if not done] if self._finished else [0]
            all(self._deliver(TextOutput(index, finish_reason="stop")) for index in unfinished)


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
