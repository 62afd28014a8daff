"""Every error that crosses a boundary of the framework.

    DynamoError
    ├── InvalidRequestError            400  the client's mistake
    │   ├── ContextLengthExceededError 400  prompt plus output does not fit the model
    │   └── UnsupportedFeatureError    400  valid, but not here: the engine or this release lacks it
    ├── AuthenticationError            401
    ├── InvalidApiKeyError             401  the client's key
    ├── NotFoundError                  404  unknown route
    │   └── ModelNotFoundError         404
    ├── MethodNotAllowedError          405
    ├── RequestTooLargeError           413
    ├── UnsupportedMediaTypeError      415
    ├── RateLimitedError               429  this client's requests are too many
    ├── RequestCancelledError          499  the caller stopped waiting
    ├── InternalError                  500  our mistake
    │   └── HandlerError               500  an endpoint's handler raised something of its own
    ├── ConnectionLostError            502  the worker went away in mid-stream
    │   ├── UnreachableError           502  there was no connection: nothing was sent
    │   ├── WorkerStalledError         502  the worker is there but makes no progress any more
    │   └── ProtocolError              502  the other side does not speak our protocol
    ├── HandoffLostError               502  a prefilled prompt's KV cache could not be fetched
    ├── UnavailableError               503  nobody can serve this right now
    │   ├── NoInstancesError           503
    │   │   └── NobodyLeftError        503  who had the request is lost, and no other can take it
    │   ├── CannotResumeError          503  who had the request is lost, and no other can go on with it
    │   ├── DrainingError              503  this worker finishes what it has and takes nothing new
    │   └── OverloadedError            503
    ├── DeadlineExceededError          504
    └── ConfigError                    ---  never leaves the process

Each class declares `code` (its name on the wire and in OpenAI's error body), `http_status` and `retryable` (the
same request may succeed on another worker). Callers read those three and never look into the message.
"""

from typing import ClassVar

import msgspec


class DynamoError(Exception):
    """Base of all errors; `message` is meant for the person who made the request."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    retry_after_s: float | None = None  # when the client may well try again; None: trying again is no help

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequestError(DynamoError):
    """The request is malformed or out of range; `param` names the field."""

    code = "invalid_request"
    http_status = 400


class ContextLengthExceededError(InvalidRequestError):
    """The prompt does not fit into the model's context."""

    code = "context_length_exceeded"


class UnsupportedFeatureError(InvalidRequestError):
    """The request is valid but asks for what this engine or release cannot do."""

    code = "unsupported_feature"


class AuthenticationError(DynamoError):
    """The peer could not show that it may talk to this process."""

    code = "unauthorized"
    http_status = 401


class InvalidApiKeyError(DynamoError):
    """The client has shown no key, or one that nobody has."""

    code = "invalid_api_key"  # OpenAI's
    http_status = 401


class NotFoundError(DynamoError):
    """There is nothing under this path."""

    code = "not_found"
    http_status = 404


class ModelNotFoundError(NotFoundError):
    """No worker has ever served a model of this name."""

    code = "model_not_found"


class MethodNotAllowedError(DynamoError):
    """The path exists but not with this HTTP method."""

    code = "method_not_allowed"
    http_status = 405


class RequestTooLargeError(DynamoError):
    """The body or frame is over the limit."""

    code = "request_too_large"
    http_status = 413


class UnsupportedMediaTypeError(DynamoError):
    """The body is not JSON."""

    code = "unsupported_media_type"
    http_status = 415


class RateLimitedError(DynamoError):
    """The client has used up what its key allows for now."""

    code = "rate_limit_exceeded"  # OpenAI's
    http_status = 429

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class RequestCancelledError(DynamoError):
    """The caller stopped or killed the request."""

    code = "cancelled"
    http_status = 499


class InternalError(DynamoError):
    """A defect of the framework or of an engine."""


class HandlerError(InternalError):
    """A handler raised an exception that is not a DynamoError.

    `error_type` is the name of that exception's class in the remote process.
    """

    code = "handler_error"

    def __init__(self, message: str, *, param: str | None = None, error_type: str = "Exception") -> None:
        super().__init__(message, param=param)
        self.error_type = error_type


class ConnectionLostError(DynamoError):
    """The connection to the worker broke while a reply was under way."""

    code = "worker_connection_lost"
    http_status = 502
    retryable = True


class UnreachableError(ConnectionLostError):
    """No connection to the worker came about, or it is silent: it has not even heard of the request."""

    code = "worker_unreachable"


class WorkerStalledError(ConnectionLostError):
    """For too long it has given no sign of life, its engine has made no step, or its stream has said nothing.

    It may still come back.
    """

    code = "worker_stalled"


class ProtocolError(ConnectionLostError):
    """The peer sent something that is not our protocol, or another version of it."""

    code = "protocol_error"
    retryable = False


class HandoffLostError(DynamoError):
    """The KV cache of a prompt that another worker has prefilled could not be fetched: it has to be prefilled anew.

    The worker that says so is well; the one that held the cache may be gone, or was asked too late.
    """

    code = "handoff_lost"
    http_status = 502
    retryable = True


class UnavailableError(DynamoError):
    """Nobody can serve this request right now."""

    code = "service_unavailable"
    http_status = 503
    retryable = True
    retry_after_s = 1.0


class NoInstancesError(UnavailableError):
    """No live instance of the endpoint is known."""

    code = "no_instances"


class NobodyLeftError(NoInstancesError):
    """The worker that had begun with the request is lost, and there is no other that can take it right now."""

    code = "nobody_left"


class CannotResumeError(UnavailableError):
    """The worker was lost in the middle of an output that no other can go on with: it takes the whole request anew."""

    code = "cannot_resume"


class DrainingError(UnavailableError):
    """The worker is shutting down and takes no new requests."""

    code = "draining"


class OverloadedError(UnavailableError):
    """A bound was reached: too many requests are already waiting."""

    code = "overloaded"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(DynamoError):
    """The request's deadline passed."""

    code = "deadline_exceeded"
    http_status = 504


class ConfigError(DynamoError):
    """A flag, environment variable or file holds something unusable."""

    code = "config_error"


_CHARACTERS_MAX = 10_000  # of a message that leaves the process


class ErrorInfo(msgspec.Struct, omit_defaults=True, kw_only=True):
    """An error as it travels between processes."""

    code: str
    message: str
    param: str | None = None
    error_type: str | None = None


def _subclasses(root: type[DynamoError]) -> dict[str, type[DynamoError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _subclasses(child)
    return found


def to_info(error: BaseException) -> ErrorInfo:
    """What the other side of a connection gets to know about `error`."""
    message = _sendable(error)
    if isinstance(error, HandlerError):
        return ErrorInfo(code=error.code, message=message, error_type=_sendable(error.error_type))
    if isinstance(error, DynamoError):
        return ErrorInfo(
            code=error.code, message=message, param=None if error.param is None else _sendable(error.param)
        )
    return ErrorInfo(code=HandlerError.code, message=message, error_type=type(error).__name__)


def _sendable(value: object) -> str:
    """`value` as text that fits into a frame: users' exceptions may say anything, at any length, or fail to."""
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - their __str__ is their code
        text = f"<unprintable {type(value).__name__}>"
    return text[:_CHARACTERS_MAX].encode(errors="backslashreplace").decode()  # lone surrogates are no UTF-8


def from_info(info: ErrorInfo) -> DynamoError:
    """The error that `info` describes; codes of a newer peer become InternalError."""
    if info.code == HandlerError.code:
        return HandlerError(info.message, error_type=info.error_type or "Exception")
    return _BY_CODE.get(info.code, InternalError)(info.message, param=info.param)


_BY_CODE = _subclasses(DynamoError) | {InternalError.code: InternalError}
