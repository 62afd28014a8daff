import pytest

from dynamo.errors import ConnectionLostError, InternalError, RequestCancelledError
from dynamo.llm.detokenizer import Detokenizer
from dynamo.llm.sequence import SequenceRequest
from dynamo.llm.tokenizer import Tokenizer
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest
from dynamo.runtime.stage import pushed
from dynamo.testing.scripted import Scripted, answers
from dynamo.testing.stages import outputs_of, reading
from dynamo.testing.tiny_model import byte_level_files
from dynamo.tokens import token_array

TOKENIZER = Tokenizer(byte_level_files())
Engine = Scripted[PreprocessedRequest, LLMEngineOutput]


def request(*, stop: tuple[str, ...] = ()) -> SequenceRequest:
    return SequenceRequest(engine_request=PreprocessedRequest(model="m", token_ids=token_array([1, 2])), stop=stop)


def steps(text: str, finish: FinishReason | None = FinishReason.LENGTH) -> list[LLMEngineOutput]:
    ids = TOKENIZER._encode([text], False)[0]
    outputs = [LLMEngineOutput(token_ids=[token_id]) for token_id in ids]
    outputs[-1].finish_reason = finish
    return outputs


def over(engine: Engine) -> Detokenizer:
    return Detokenizer(pushed(engine), TOKENIZER)


async def test_text_and_the_end_of_it() -> None:
    engine = Engine(answers(*steps("Hello world")))
    outputs = await outputs_of(over(engine), request())
    assert [(output.text, output.finish_reason) for output in outputs] == [("Hello", None), (" world", "length")]
    assert engine.closed_early == 0, "the engine ended by itself and need not be told to stop"


async def test_a_stop_string_stops_the_engine() -> None:
    engine = Engine(answers(*steps("Hello world. The end", None)), hang=True)
    outputs = await outputs_of(over(engine), request(stop=("wor",)))
    assert "".join(output.text for output in outputs) == "Hello "
    assert outputs[-1].finish_reason == "stop"
    assert (engine.open, engine.closed_early) == (0, 1)


async def test_a_client_that_leaves_reaches_the_engine() -> None:
    engine = Engine(answers(*steps("Hello world", None)), hang=True)
    async with reading(over(engine), request()) as reader:
        await reader.until(2)
        assert engine.open == 1
    assert (engine.open, engine.closed_early) == (0, 1)


async def test_a_reader_that_has_enough_ends_the_engine_well() -> None:
    """Also where the engine has no finish_reason to show for it."""
    engine = Engine(answers(*steps("Hello world", None)), hang=True)
    [output] = await outputs_of(over(engine), request(), enough=1)
    assert (output.text, output.finish_reason) == ("Hello", None)
    assert (engine.open, engine.closed_early) == (0, 1)


async def test_errors_of_the_worker_pass_through() -> None:
    engine = Engine(answers(*steps("Hello", None), ConnectionLostError("gone")))
    with pytest.raises(ConnectionLostError):
        await outputs_of(over(engine), request())


@pytest.mark.parametrize(
    ("reason", "error"),
    [(FinishReason.ERROR, InternalError), (FinishReason.CANCELLED, RequestCancelledError), (None, InternalError)],
)
async def test_ends_that_are_none(reason: FinishReason | None, error: type[Exception]) -> None:
    engine = Engine(answers(*steps("Hello", reason)))
    with pytest.raises(error):
        await outputs_of(over(engine), request())
    assert engine.open == 0
