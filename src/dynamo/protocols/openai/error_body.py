"""Errors in OpenAI's shape."""

from msgspec import Struct

from dynamo.errors import AuthenticationError, DynamoError, RateLimitedError


class ErrorDetail(Struct, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Struct, kw_only=True):
    error: ErrorDetail


def error_body(error: DynamoError) -> ErrorBody:
    """What a client gets to read about `error`."""
    if isinstance(error, AuthenticationError):
        kind = "authentication_error"
    elif isinstance(error, RateLimitedError):
        kind = "requests"  # OpenAI says here what there were too many of
    else:
        kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    return ErrorBody(error=ErrorDetail(message=error.message, type=kind, param=error.param, code=error.code))
