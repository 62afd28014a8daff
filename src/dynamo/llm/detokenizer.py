"""The stage that turns an engine's token ids into text."""

from dynamo.errors import InternalError
from dynamo.llm.sequence import SequenceRequest, TextOutput
from dynamo.llm.text_sequence import TextSequence
from dynamo.llm.tokenizer import Tokenizer
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver, Stage


class Detokenizer:
    """A Stage from SequenceRequest to TextOutput, over one that deals in tokens.

    The last output has a finish_reason. A stop string ends the answer of the stage behind, so that the engine stops
    too. Raises InternalError when the engine fails, or ends without a finish_reason.
    """

    def __init__(self, tokens: Stage[PreprocessedRequest, LLMEngineOutput], tokenizer: Tokenizer) -> None:
        self._tokens = tokens
        self._tokenizer = tokenizer

    async def __call__(self, request: SequenceRequest, context: Context, deliver: Deliver[TextOutput]) -> None:
        sequence = TextSequence(self._tokenizer, request)
        wanted = True

        def push(output: LLMEngineOutput) -> bool:
            nonlocal wanted
            wanted = deliver(sequence.push(output))
            return wanted and not sequence.stopped

        await self._tokens(request.engine_request, context, push)
        if wanted and not sequence.finished:
            raise InternalError("The engine ended its answer without a finish_reason.")
