"""What vLLM raises, as the framework says it. Needs vLLM for its exceptions, no engine."""

import msgspec
import pytest

from dynamo.errors import (
    ConnectionLostError,
    DynamoError,
    HandoffLostError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
)
from dynamo.protocols.disagg import Handoff
from dynamo.protocols.generation import GuidedDecoding, PreprocessedRequest
from dynamo.tokens import token_array

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # importing vLLM and torch warns a lot

PLAIN = PreprocessedRequest(model="m", token_ids=token_array([1]))
GUIDED = PreprocessedRequest(model="m", token_ids=token_array([1]), guided_decoding=GuidedDecoding(json_object=True))

HANDED = msgspec.structs.replace(GUIDED, handoff=Handoff(engine="vllm", params=b""))


def translation(error: Exception, request: PreprocessedRequest = PLAIN) -> DynamoError:
    from dynamo.engines.vllm.failures import translated

    with pytest.raises(DynamoError) as caught, translated(request):
        raise error
    return caught.value


def test_a_refusal_keeps_its_message_and_parameter() -> None:
    from vllm.exceptions import VLLMValidationError

    error = translation(VLLMValidationError("too hot", parameter="temperature", value=9))

    assert type(error) is InvalidRequestError
    assert (error.message, error.param) == ("too hot", "temperature")


def test_a_refusal_without_a_parameter_is_about_the_schema_where_there_is_one() -> None:
    from vllm.exceptions import VLLMValidationError

    assert translation(VLLMValidationError("no")).param is None
    assert translation(VLLMValidationError("no"), GUIDED).param == "response_format"


def test_a_full_queue_can_be_tried_elsewhere() -> None:
    from vllm.exceptions import QueueOverflowError

    error = translation(QueueOverflowError())

    assert type(error) is OverloadedError
    assert error.retryable


def test_the_death_of_the_engine_can_be_tried_elsewhere() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    error = translation(EngineDeadError())

    assert type(error) is ConnectionLostError
    assert error.retryable


def test_a_defect_tells_its_cause() -> None:
    from vllm.v1.engine.exceptions import EngineGenerateError

    error = EngineGenerateError()
    error.__cause__ = KeyError("block")

    assert translation(error).message == "vLLM failed: 'block'"
    assert type(translation(error)) is InternalError


def test_our_own_errors_pass() -> None:
    error = InvalidRequestError("ours")

    assert translation(error) is error


def test_a_request_that_fails_without_a_message() -> None:
    from dynamo.engines.vllm.failures import request_failure

    assert type(request_failure(GUIDED, first=True)) is InvalidRequestError
    assert type(request_failure(GUIDED, first=False)) is InternalError
    assert type(request_failure(PLAIN, first=True)) is InternalError
    assert type(request_failure(HANDED, first=True)) is HandoffLostError
    assert type(request_failure(HANDED, first=False)) is InternalError
