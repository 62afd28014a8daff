"""What a whole streamed answer says."""

from dataclasses import dataclass

import msgspec

_DATA = b"data: {"
_TEXT = b'"content":"'  # inside JSON strings quotes are escaped: text that a model wrote never looks like this
_NO_TEXT = b'"content":""'
_FINISH_REASON = b'"finish_reason":"'
_DONE = b"data: [DONE]\n\n"


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _LastChunk(msgspec.Struct):
    usage: _Usage


_decode = msgspec.json.Decoder(_LastChunk).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Counted once at its end, so that an event on its way costs next to nothing."""

    prompt_tokens: int
    tokens: int
    events: int  # that have text


def text_events(body: bytes) -> int:
    """How many events with text are in a part of an answer."""
    return body.count(_TEXT) - body.count(_NO_TEXT)


def is_whole(body: bytes) -> bool:
    """Whether a response, or what there is of it yet, is an answer that has come to its end: not one to an error."""
    return body.count(_FINISH_REASON) == 1 and _DONE in body


def read_answer(body: bytes) -> Answer:
    """`body`: all of the response, headers and chunk sizes included. ValueError when it is not a complete answer."""
    if body.count(_FINISH_REASON) != 1:
        raise ValueError("no finish reason")
    if _DONE not in body:
        raise ValueError("no [DONE]")
    start = body.rindex(_DATA) + len(_DATA) - 1
    try:
        usage = _decode(body[start : body.index(b"\n\n", start)]).usage
    except msgspec.DecodeError:
        raise ValueError("no usage in the last chunk") from None
    return Answer(prompt_tokens=usage.prompt_tokens, tokens=usage.completion_tokens, events=text_events(body))
