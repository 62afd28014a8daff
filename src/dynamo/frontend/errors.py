"""Errors as OpenAI's clients expect them."""

import math

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dynamo.errors import DynamoError, InternalError, InvalidApiKeyError, MethodNotAllowedError, NotFoundError
from dynamo.protocols.openai import error_body


def encode_error(error: DynamoError) -> bytes:
    return msgspec.json.encode(error_body(error))


def error_headers(error: DynamoError) -> dict[str, str]:
    """What HTTP says beside the body."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))  # HTTP has whole seconds only
    if isinstance(error, InvalidApiKeyError):
        headers["www-authenticate"] = "Bearer"
    return headers


def error_response(error: DynamoError, headers: dict[str, str] | None = None) -> Response:
    headers = {**(headers or {}), **error_headers(error)}
    return Response(encode_error(error), error.http_status, headers, media_type="application/json")


async def on_http_exception(request: Request, exception: Exception) -> Response:
    """Starlette's own 404 and 405 in OpenAI's shape."""
    assert isinstance(exception, HTTPException)
    where = f"{request.method} {request.url.path}"
    if exception.status_code == 405:
        error: DynamoError = MethodNotAllowedError(f"{where}: this method is not allowed here")
    elif exception.status_code == 404:
        error = NotFoundError(f"{where}: there is nothing here")
    else:
        error = InternalError(str(exception.detail))
    return error_response(error, dict(exception.headers or {}))


async def on_dynamo_error(request: Request, exception: Exception) -> Response:
    assert isinstance(exception, DynamoError)
    return error_response(exception)


async def on_defect(request: Request, exception: Exception) -> Response:
    """For what should not have happened; Starlette logs the traceback."""
    return error_response(InternalError("internal error; the server's log says more"))
