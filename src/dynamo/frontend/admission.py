"""What a request must be before anybody looks into it."""

from starlette.datastructures import Headers
from starlette.types import Receive

from dynamo.errors import InvalidRequestError, RequestCancelledError, RequestTooLargeError, UnsupportedMediaTypeError
from dynamo.frontend.body_budget import HeldBody

HEADER_CHARS_MAX = 256  # of those that are read here
TIMEOUT_HEADER = "x-request-timeout-ms"
TIMEOUT_MS_MAX = 10**9  # eleven days, and far from what a float of seconds could not tell apart


async def read_body(headers: Headers, receive: Receive, limit_bytes: int, held: HeldBody) -> bytes:
    """The body of a JSON request; `held` grows with it.

    Raises UnsupportedMediaTypeError, RequestTooLargeError (before reading when the client says the size),
    OverloadedError, and RequestCancelledError when the client leaves in the middle.
    """
    _check_media_type(headers)
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise _too_large(limit_bytes)
    chunks: list[bytes] = []
    size_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestCancelledError("the client left")
        chunk = message.get("body", b"")
        size_bytes += len(chunk)
        if size_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        held.grow(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def request_id(headers: Headers) -> str | None:
    """The client's own id for the request; InvalidRequestError when it cannot be echoed in a header."""
    return _name_in(headers, "x-request-id")


def session_id(headers: Headers) -> str | None:
    """The session that the client says the request belongs to; raises InvalidRequestError."""
    return _name_in(headers, "x-dynamo-session-id")


def timeout_s(headers: Headers, limit_s: float | None) -> float | None:
    """How long the request may take: as long as its client says, but no longer than `limit_s`; None: for ever.

    Raises InvalidRequestError.
    """
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return limit_s
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and 0 < int(text) <= TIMEOUT_MS_MAX):
        raise InvalidRequestError(
            f"{TIMEOUT_HEADER} must be a whole number of milliseconds, 1 to {TIMEOUT_MS_MAX}", param=TIMEOUT_HEADER
        )
    asked_s = int(text) / 1000
    return asked_s if limit_s is None else min(asked_s, limit_s)


def _name_in(headers: Headers, header: str) -> str | None:
    value = headers.get(header)
    if value is not None and not (0 < len(value) <= HEADER_CHARS_MAX and value.isascii() and value.isprintable()):
        raise InvalidRequestError(f"{header} must be 1 to {HEADER_CHARS_MAX} printable ASCII characters", param=header)
    return value


def _check_media_type(headers: Headers) -> None:
    media_type = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaTypeError(f"send the request as application/json, not {media_type or 'nothing'}")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(f"send the request uncompressed, not with content-encoding {encoding}")


def _too_large(limit_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"the request body is over the limit of {limit_bytes} bytes")
