"""From vLLM's errors to the framework's."""

from collections.abc import Iterator
from contextlib import contextmanager

from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMServerError, VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from dynamo.errors import (
    ConnectionLostError,
    DynamoError,
    HandoffLostError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
)
from dynamo.protocols.generation import PreprocessedRequest

DEATH = "vLLM's engine process has died"

_GUIDED_PARAM = "response_format"


@contextmanager
def translated(request: PreprocessedRequest) -> Iterator[None]:
    """Turns what vLLM raises for `request` into a DynamoError.

    The death of the engine is retryable: another worker can do the same request.
    """
    try:
        yield
    except VLLMClientError as error:
        raise InvalidRequestError(_message(error), param=_param(error, request)) from error
    except GracefulHTTPError as error:
        raise OverloadedError(error.message) from error
    except EngineDeadError as error:
        raise ConnectionLostError(DEATH) from error
    except VLLMServerError as error:
        raise InternalError(f"vLLM failed: {error.__cause__ or error}") from error


def request_failure(request: PreprocessedRequest, *, first: bool) -> DynamoError:
    """The error for a request that vLLM ended with its finish reason "error", which comes without a message.

    Before any output it is the handoff, where there is one, or else the grammar: vLLM compiles it after it has accepted
    the request.
    """
    if first and request.handoff is not None:
        return HandoffLostError("the KV cache of the prefilled prompt could not be fetched")
    if first and request.guided_decoding is not None:
        return InvalidRequestError("the engine could not compile this schema", param=_GUIDED_PARAM)
    return InternalError("vLLM could not complete this request")


def _message(error: VLLMClientError) -> str:
    """Without the "(parameter=..., value=...)" that str() would add."""
    return str(error.args[0]) if error.args else str(error)


def _param(error: VLLMClientError, request: PreprocessedRequest) -> str | None:
    """vLLM names parameters as OpenAI does, but gives no name to errors in a schema."""
    if isinstance(error, VLLMValidationError) and error.parameter is not None:
        return str(error.parameter)
    return _GUIDED_PARAM if request.guided_decoding is not None else None
