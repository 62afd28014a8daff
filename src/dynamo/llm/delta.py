"""A stream's outputs as server-sent events, in the shapes of /v1/chat/completions and /v1/completions.

A step that only adds text is by far the most frequent one: its event is the text between two byte strings made
beforehand. They are cut out of an encoded chunk, so that both ways give the same bytes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from dynamo.llm.logprobs import chat_logprobs, completion_logprobs
from dynamo.llm.sequence import TextOutput
from dynamo.llm.usage import UsageCounter
from dynamo.protocols.openai.requests import GenerationRequest, extra_fields, wants_usage
from dynamo.protocols.openai.responses import (
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatDelta,
    Completion,
    CompletionChoice,
    NvExtResponse,
    Usage,
)

_MARK = "\x00"  # stands for the text where a chunk is cut in two

_json = msgspec.json.encode

ChoiceT = TypeVar("ChoiceT", ChatChunkChoice, CompletionChoice)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """What an answer, and each chunk of it, begins with."""

    id: str
    created_s: int  # Unix time
    model: str


class EventStream(ABC, Generic[ChoiceT]):
    """Writes the outputs of one request as events; "[DONE]" and errors are the HTTP layer's."""

    __slots__ = ("_around_text", "_extra_fields", "_head", "_include_usage", "_usage")

    def __init__(self, request: GenerationRequest, head: ResponseHead) -> None:
        self._head = head
        self._usage = UsageCounter()
        self._include_usage = wants_usage(request)
        self._extra_fields = extra_fields(request)
        self._around_text: dict[int, tuple[bytes, bytes]] = {}  # by choice, once it has begun

    def encode(self, output: TextOutput) -> bytes:
        """The events of `output`: one as a rule, none when there is nothing to see, two at the start of a chat."""
        self._usage.completion_tokens += output.token_count
        around = self._around_text.get(output.index)
        if (
            around is None
            or output.finish_reason is not None
            or output.logprobs is not None
            or output.extra is not None
        ):
            return self._encode_rare(output, begins=around is None)
        if not output.text:
            return b""
        return around[0] + _json(output.text) + around[1]

    def finish(self) -> bytes:
        """The event after the last output: the usage, if it was asked for and is known."""
        usage = self._usage.usage() if self._include_usage else None
        return b"" if usage is None else self._event([], usage, self._nvext())

    @abstractmethod
    def _choice(self, output: TextOutput) -> ChoiceT:
        """What `output` adds to its choice."""

    @abstractmethod
    def _opening(self, index: int) -> ChoiceT | None:
        """What a choice begins with, before any text."""

    @abstractmethod
    def _chunk(
        self, choices: list[ChoiceT], usage: Usage | UnsetType | None, nvext: NvExtResponse | UnsetType
    ) -> msgspec.Struct: ...

    def _encode_rare(self, output: TextOutput, *, begins: bool) -> bytes:
        self._usage.add(output)
        events = self._begin(output.index) if begins else b""
        if output.finish_reason is not None:
            return events + self._event([self._choice(output)], self._no_usage(), self._nvext())
        seen_extra = output.extra is not None and (output.extra.reasoning or output.extra.tool_calls)
        if output.text or output.logprobs or seen_extra:
            return events + self._event([self._choice(output)], self._no_usage(), UNSET)
        return events

    def _begin(self, index: int) -> bytes:
        chunk = self._event([self._choice(TextOutput(index, _MARK))], self._no_usage(), UNSET)
        before, after = chunk.split(_json(_MARK))
        self._around_text[index] = before, after
        opening = self._opening(index)
        return b"" if opening is None else self._event([opening], self._no_usage(), UNSET)

    def _event(
        self, choices: list[ChoiceT], usage: Usage | UnsetType | None, nvext: NvExtResponse | UnsetType
    ) -> bytes:
        return b"data: " + _json(self._chunk(choices, usage, nvext)) + b"\n\n"

    def _no_usage(self) -> UnsetType | None:
        """Where the last chunk holds the usage, the others hold null."""
        return None if self._include_usage else UNSET

    def _nvext(self) -> NvExtResponse | UnsetType:
        return self._usage.nvext(self._extra_fields)


class ChatEvents(EventStream[ChatChunkChoice]):
    """Chunks of /v1/chat/completions."""

    __slots__ = ()

    def _choice(self, output: TextOutput) -> ChatChunkChoice:
        delta = ChatDelta(content=output.text or UNSET)
        if output.extra is not None:
            delta.reasoning_content = output.extra.reasoning or UNSET
            delta.tool_calls = output.extra.tool_calls or UNSET
        logprobs = None if output.logprobs is None else chat_logprobs(output.logprobs)
        return ChatChunkChoice(index=output.index, delta=delta, logprobs=logprobs, finish_reason=output.finish_reason)

    def _opening(self, index: int) -> ChatChunkChoice:
        return ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))

    def _chunk(
        self, choices: list[ChatChunkChoice], usage: Usage | UnsetType | None, nvext: NvExtResponse | UnsetType
    ) -> ChatCompletionChunk:
        head = self._head
        return ChatCompletionChunk(
            id=head.id, created=head.created_s, model=head.model, choices=choices, usage=usage, nvext=nvext
        )


class CompletionEvents(EventStream[CompletionChoice]):
    """Chunks of /v1/completions."""

    __slots__ = ()

    def _choice(self, output: TextOutput) -> CompletionChoice:
        logprobs = None if output.logprobs is None else completion_logprobs(output.logprobs)
        return CompletionChoice(
            index=output.index, text=output.text, logprobs=logprobs, finish_reason=output.finish_reason
        )

    def _opening(self, index: int) -> None:
        return None

    def _chunk(
        self, choices: list[CompletionChoice], usage: Usage | UnsetType | None, nvext: NvExtResponse | UnsetType
    ) -> Completion:
        head = self._head
        return Completion(
            id=head.id, created=head.created_s, model=head.model, choices=choices, usage=usage, nvext=nvext
        )
