"""From the bytes of a body to a typed request: every mistake is an InvalidRequestError that names its field."""

import re
from typing import Any, TypeVar

import msgspec

from dynamo.errors import InvalidRequestError
from dynamo.protocols.openai.checks import check_chat, check_completion, check_nesting
from dynamo.protocols.openai.messages import JsonObject
from dynamo.protocols.openai.requests import ChatCompletionRequest, CompletionRequest

MESSAGE_CHARS_MAX = 500

T = TypeVar("T")

_chat_decoder = msgspec.json.Decoder(ChatCompletionRequest)
_completion_decoder = msgspec.json.Decoder(CompletionRequest)
_object_decoder = msgspec.json.Decoder(dict[str, Any])


def decode_chat(body: bytes) -> ChatCompletionRequest:
    """The body of /v1/chat/completions; raises InvalidRequestError."""
    request = _decode(_chat_decoder, body)
    check_chat(request)
    return request


def decode_completion(body: bytes) -> CompletionRequest:
    """The body of /v1/completions; raises InvalidRequestError."""
    request = _decode(_completion_decoder, body)
    check_completion(request)
    return request


def decode_object(body: bytes) -> JsonObject:
    """The body as plain data with all its fields, for workers that take it as it came; raises InvalidRequestError."""
    request = _decode(_object_decoder, body)
    check_nesting(request, None)
    return request


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        body.decode()  # msgspec does not look into strings that it skips
        return decoder.decode(body)
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from error
    except msgspec.ValidationError as error:
        reason, field = _locate(str(error))
        raise InvalidRequestError(f"{field}: {reason}" if field else reason, param=field) from error
    except msgspec.DecodeError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise InvalidRequestError("The body is nested too deeply.") from error


# msgspec says where an error is only in its message: "<reason> - at `$.messages[0].role`", "<reason> - at `key` in
# `$.logit_bias`" and, of what is absent, "Object missing required field `model`". This function alone relies on that.
_PLACE = re.compile(r"(?P<reason>.*) - at (?:`key` in )?`\$(?P<path>[^`]*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")


def _locate(message: str) -> tuple[str, str | None]:
    """What is wrong, and the field that it is about."""
    place = _PLACE.fullmatch(message)
    reason, path = (place["reason"], place["path"]) if place else (message, "")
    if missing := _MISSING.fullmatch(reason):
        reason, path = "required, but missing", f"{path}.{missing['name']}"
    if len(reason) > MESSAGE_CHARS_MAX:
        reason = reason[:MESSAGE_CHARS_MAX] + "…"  # it may quote what the client sent
    return reason, path.replace("[...]", "").removeprefix(".") or None
