"""The conversation in a chat request."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

JsonObject = dict[str, Any]

Role = Literal["system", "developer", "user", "assistant", "tool"]


class ContentPart(Struct, kw_only=True):
    """One part of a message; `text` is set where `type` is "text"."""

    type: str
    text: str | None = None


class CalledFunction(Struct, kw_only=True):
    """The function that an assistant called, and with what."""

    name: str
    arguments: str | JsonObject = ""  # JSON text, as OpenAI has it; some clients send the object itself


class ToolCall(Struct, kw_only=True, omit_defaults=True):
    """A call that the assistant made earlier in the conversation."""

    id: str | None = None
    type: Literal["function"]
    function: CalledFunction


class Message(Struct, kw_only=True):
    """One turn; only an assistant's content may be absent."""

    role: Role
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class FunctionDefinition(Struct, kw_only=True, omit_defaults=True):
    """What a function is called, what it does, and the JSON schema of its arguments."""

    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Struct, kw_only=True):
    """Something the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class ToolChoice(Struct, kw_only=True):
    """The object form of `tool_choice`: the model must call what it names."""

    type: str
