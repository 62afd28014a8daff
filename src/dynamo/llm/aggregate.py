"""All outputs of a request as one answer, for clients that don't stream."""

from dataclasses import dataclass, field

from msgspec import UNSET

from dynamo.llm.delta import ResponseHead
from dynamo.llm.logprobs import chat_logprobs, completion_logprobs
from dynamo.llm.sequence import ScoredToken, TextOutput
from dynamo.llm.tool_calls import ToolCallParts
from dynamo.llm.usage import UsageCounter
from dynamo.protocols.openai.requests import GenerationRequest, extra_fields
from dynamo.protocols.openai.responses import (
    ChatAnswer,
    ChatChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
)


@dataclass(slots=True)
class _Choice:
    """What has come of one choice."""

    index: int
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: ToolCallParts = field(default_factory=ToolCallParts)
    logprobs: list[ScoredToken] | None = None
    finish_reason: str | None = None

    def add(self, output: TextOutput) -> None:
        self.texts.append(output.text)
        if output.logprobs is not None:
            self.logprobs = (self.logprobs or []) + output.logprobs
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
        if output.extra is not None:
            self.reasoning.append(output.extra.reasoning or "")
            self.tool_calls.add(output.extra.tool_calls or ())

    def as_chat(self) -> ChatChoice:
        calls = self.tool_calls.complete()
        text = "".join(self.texts)
        answer = ChatAnswer(
            content=None if calls and not text else text,
            reasoning_content="".join(self.reasoning) or UNSET,
            tool_calls=calls or UNSET,
        )
        logprobs = None if self.logprobs is None else chat_logprobs(self.logprobs)
        return ChatChoice(index=self.index, message=answer, logprobs=logprobs, finish_reason=self.finish_reason)

    def as_completion(self) -> CompletionChoice:
        logprobs = None if self.logprobs is None else completion_logprobs(self.logprobs)
        return CompletionChoice(
            index=self.index, text="".join(self.texts), logprobs=logprobs, finish_reason=self.finish_reason
        )


class Answer:
    """Collects the outputs of all choices."""

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}
        self._usage = UsageCounter()

    def add(self, output: TextOutput) -> bool:
        """Takes the next output; a Deliver that always wants more."""
        choice = self._choices.get(output.index)
        if choice is None:
            choice = self._choices[output.index] = _Choice(output.index)
        choice.add(output)
        self._usage.completion_tokens += output.token_count
        self._usage.add(output)
        return True

    def as_chat(self, request: GenerationRequest, head: ResponseHead) -> ChatCompletion:
        """The answer of /v1/chat/completions."""
        return ChatCompletion(
            id=head.id,
            created=head.created_s,
            model=head.model,
            choices=[choice.as_chat() for choice in self._in_order()],
            usage=self._usage.usage(),
            nvext=self._usage.nvext(extra_fields(request)),
        )

    def as_completion(self, request: GenerationRequest, head: ResponseHead) -> Completion:
        """The answer of /v1/completions."""
        return Completion(
            id=head.id,
            created=head.created_s,
            model=head.model,
            choices=[choice.as_completion() for choice in self._in_order()],
            usage=self._usage.usage(),
            nvext=self._usage.nvext(extra_fields(request)),
        )

    def _in_order(self) -> list[_Choice]:
        return [self._choices[index] for index in sorted(self._choices)]
