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
        text = _Text(TextSequence(self._tokenizer, request), deliver)
        await self._tokens(request.engine_request, context, text)
        if text.wanted and not text.sequence.finished:
            raise InternalError("The engine ended its answer without a finish_reason.")


class _Text:
    """A Deliver of tokens over one of text."""

    __slots__ = ("_deliver", "sequence", "wanted")

    def __init__(self, sequence: TextSequence, deliver: Deliver[TextOutput]) -> None:
        self.sequence = sequence
        self.wanted = True
        self._deliver = deliver

    def __call__(self, output: LLMEngineOutput) -> bool:
        sequence = self.sequence
        self.wanted = self._deliver(sequence.push(output))
        return self.wanted and not sequence.stopped
