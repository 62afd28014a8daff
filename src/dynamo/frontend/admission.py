"""What a request must be before anybody looks into it."""

from starlette.datastructures import Headers
from starlette.types import Receive

from dynamo.errors import InvalidRequestError, RequestCancelledError, RequestTooLargeError, UnsupportedMediaTypeError

REQUEST_ID_CHARS_MAX = 256


async def read_body(headers: Headers, receive: Receive, limit_bytes: int) -> bytes:
    """The body of a JSON request.

    Raises UnsupportedMediaTypeError, RequestTooLargeError (before reading when the client says the size), and
    RequestCancelledError when the client leaves in the middle.
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
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def request_id(headers: Headers) -> str | None:
    """The client's own id for the request; InvalidRequestError when it cannot be echoed in a header."""
    value = headers.get("x-request-id")
    if value is None:
        return None
    if not value or len(value) > REQUEST_ID_CHARS_MAX or not value.isascii() or not value.isprintable():
        raise InvalidRequestError(
            f"x-request-id must be 1 to {REQUEST_ID_CHARS_MAX} printable ASCII characters", param="x-request-id"
        )
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
