"""The request path of one model, each stage wrapped in the next: read it top to bottom.

What a frontend does with it:

    request = decode_chat(body)
    outputs = pipeline.chat(request, body, context)          # errors of the client's come with the first output
    events = ChatEvents(request, head)                       # a stream: events.encode(output) … events.finish()
    answer = await collect_chat(outputs, request, head)      # or all at once
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from dynamo.errors import ModelNotFoundError
from dynamo.llm.detokenizer import Detokenizer
from dynamo.llm.loaded_model import LoadedModel
from dynamo.llm.preprocessor import ChatPreprocessor, CompletionPreprocessor
from dynamo.llm.sequence import TextOutput
from dynamo.llm.text_engine import TextEngine
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.model_card import ModelCard, ModelInput, ModelType
from dynamo.protocols.openai import ChatCompletionRequest, CompletionRequest, JsonObject, decode_object
from dynamo.runtime.context import Context
from dynamo.runtime.handler import Handler


class Router(Protocol):
    """The network edge: chooses a worker."""

    def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]: ...

    def generate_text(self, request: JsonObject, context: Context) -> AsyncIterator[Any]: ...


class Pipeline(Protocol):
    """Answers requests to one model. `body` is what `request` was decoded from.

    The last output of each choice has a finish_reason. Closing an answer early reaches the engine.
    """

    def chat(self, request: ChatCompletionRequest, body: bytes, context: Context) -> AsyncIterator[TextOutput]: ...

    def completion(self, request: CompletionRequest, body: bytes, context: Context) -> AsyncIterator[TextOutput]: ...


def build_pipeline(card: ModelCard, files: Mapping[str, bytes], router: Router) -> Pipeline:
    """The path to the workers that `card` describes; `files` maps the card's artifacts to their content.

    Takes up to a second for a large tokenizer. Raises ConfigError when the files can't be used.
    """
    if card.model_input is ModelInput.Text:
        return TextPipeline(card, router.generate_text)
    return TokenPipeline(LoadedModel.load(card, files), router.generate)


class TokenPipeline:
    """For workers that are given token ids."""

    def __init__(self, model: LoadedModel, tokens: Handler[PreprocessedRequest, LLMEngineOutput]) -> None:
        text = Detokenizer(tokens, model.tokenizer)
        self._chat = ChatPreprocessor(text, model)
        self._completion = CompletionPreprocessor(text, model)
        self._card = model.card

    def chat(self, request: ChatCompletionRequest, body: bytes, context: Context) -> AsyncIterator[TextOutput]:
        _require_type(self._card, ModelType.Chat, "chat")
        return self._chat(request, context)

    def completion(self, request: CompletionRequest, body: bytes, context: Context) -> AsyncIterator[TextOutput]:
        _require_type(self._card, ModelType.Completions, "completion")
        return self._completion(request, context)


class TextPipeline:
    """For workers that are given the OpenAI request."""

    def __init__(self, card: ModelCard, chunks: Handler[JsonObject, Any]) -> None:
        self._text = TextEngine(chunks)
        self._card = card

    def chat(self, request: ChatCompletionRequest, body: bytes, context: Context) -> AsyncIterator[TextOutput]:
        _require_type(self._card, ModelType.Chat, "chat")
        return self._text(decode_object(body), context)

    def completion(self, request: CompletionRequest, body: bytes, context: Context) -> AsyncIterator[TextOutput]:
        _require_type(self._card, ModelType.Completions, "completion")
        return self._text(decode_object(body), context)


def _require_type(card: ModelCard, kind: ModelType, name: str) -> None:
    if not card.model_type & kind.value:
        raise ModelNotFoundError(f"The model {card.name!r} answers no {name} requests.", param="model")
