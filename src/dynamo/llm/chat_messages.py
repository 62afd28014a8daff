"""A conversation as a chat template wants to have it.

Templates differ in what they take: some only texts, some only lists of parts, most both. What one takes is found out by
giving it a message of each kind, not by reading its code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dynamo.errors import InvalidRequestError
from dynamo.protocols.openai.messages import JsonObject, Message, Tool, ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepts:
    """What a template takes."""

    texts: bool = True
    parts: bool = False
    developer: bool = False  # the role; otherwise it is made "system"


def probe(source: str, render: Callable[[list[JsonObject]], str]) -> Accepts:
    """What the template with this source takes; `render` gives "" where it fails."""
    text, trap = "probe-of-text", "probe-of-keys"  # the trap shows only where a part is printed as it is
    part = {"type": "text", "text": text, trap: trap}
    from_parts = render([{"role": "user", "content": [part]}])
    parts = text in from_parts and trap not in from_parts
    texts = text in render([{"role": "user", "content": text}])
    return Accepts(texts=texts or not parts, parts=parts, developer="'developer'" in source or '"developer"' in source)


def plain_messages(messages: Sequence[Message], accepts: Accepts) -> list[JsonObject]:
    """The messages as plain data; InvalidRequestError when the arguments of a tool call are not JSON."""
    return [_plain(message, i, accepts) for i, message in enumerate(messages)]


def plain_tools(tools: Sequence[Tool]) -> list[JsonObject]:
    """The tools as plain data."""
    return [{"type": tool.type, "function": msgspec.to_builtins(tool.function)} for tool in tools]


def _plain(message: Message, i: int, accepts: Accepts) -> JsonObject:
    system = message.role == "developer" and not accepts.developer
    plain: JsonObject = {"role": "system" if system else message.role, "content": _content(message, accepts)}
    if message.name is not None:
        plain["name"] = message.name
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        plain["tool_calls"] = [_call(call, f"messages[{i}].tool_calls[{j}]") for j, call in calls]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _content(message: Message, accepts: Accepts) -> str | list[dict[str, str]]:
    """An absent content is an empty one: a template would print "None"."""
    content = message.content or ""
    if isinstance(content, str):
        return content if accepts.texts else [_part(content)] if content else []
    texts = [part.text or "" for part in content]
    return [_part(text) for text in texts] if accepts.parts else "\n".join(texts)


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _call(call: ToolCall, field: str) -> JsonObject:
    """Templates expect the arguments as an object, where OpenAI's protocol has JSON text."""
    arguments: Any = call.function.arguments
    if isinstance(arguments, str):
        arguments = _json(arguments or "{}", f"{field}.function.arguments")
    plain: JsonObject = {"type": call.type, "function": {"name": call.function.name, "arguments": arguments}}
    return plain if call.id is None else {"id": call.id} | plain


def _json(text: str, field: str) -> JsonObject:
    try:
        return msgspec.json.decode(text, type=JsonObject)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(f"{field}: not a JSON object.", param=field) from error
