import msgspec
import pytest

from dynamo.engines.mocker.handoff import Begin, End, HandoffParams, decode_question
from dynamo.errors import HandoffLostError, InvalidRequestError
from dynamo.protocols.disagg import Handoff


def test_params_travel_in_a_handoff() -> None:
    params = HandoffParams(b"metadata", b"id")
    assert HandoffParams.of(params.handoff()) == params


@pytest.mark.parametrize(
    "handoff",
    [
        Handoff(engine="vllm", params=b""),
        Handoff(engine="mocker", params=b"\x00"),
        Handoff(engine="mocker", params=b""),
    ],
)
def test_other_handoffs_are_refused(handoff: Handoff) -> None:
    with pytest.raises(HandoffLostError):
        HandoffParams.of(handoff)


@pytest.mark.parametrize("question", [Begin(id=b"x", tokens=7, first_block=1, blocks=2), End(ids=[b"x", b"y"])])
def test_questions_travel(question: Begin | End) -> None:
    assert decode_question(msgspec.msgpack.encode(question)) == question


def test_what_is_no_question() -> None:
    with pytest.raises(InvalidRequestError):
        decode_question(b"\xc0")
