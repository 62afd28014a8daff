"""The stage that turns an engine's token ids into text."""

from collections.abc import AsyncIterator

from dynamo.errors import InternalError
from dynamo.llm.sequence import SequenceRequest, TextOutput
from dynamo.llm.text_sequence import TextSequence
from dynamo.llm.tokenizer import Tokenizer
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest
from dynamo.runtime.context import Context
from dynamo.runtime.handler import Handler, closing


class Detokenizer:
    """A Handler from SequenceRequest to TextOutput, over one that deals in tokens.

    The last output has a finish_reason. A stop string ends the stream and closes the one behind it, so that the engine
    stops too. Raises InternalError when the engine fails, or ends without a finish_reason.
    """

    def __init__(self, upstream: Handler[PreprocessedRequest, LLMEngineOutput], tokenizer: Tokenizer) -> None:
        self._upstream = upstream
        self._tokenizer = tokenizer

    async def __call__(self, request: SequenceRequest, context: Context) -> AsyncIterator[TextOutput]:
        sequence = TextSequence(self._tokenizer, request)
        async with closing(self._upstream(request.engine_request, context)) as outputs:
            async for output in outputs:
                text = sequence.push(output)
                if sequence.stopped:
                    break  # the engine would go on
                yield text
            else:
                if not sequence.finished:
                    raise InternalError("The engine ended its answer without a finish_reason.")
                return
        yield text
