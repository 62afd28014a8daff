"""The request path of one model, each stage wrapped in the next: read it top to bottom.

What a frontend does with it:

    request = decode_chat(body)
    events = ChatEvents(request, head)                         # as a stream,
    await pipeline.chat(request, body, context, deliver)       #   where deliver(output) writes events.encode(output);
    write(events.finish())
    answer = Answer()                                          # or all at once
    await pipeline.chat(request, body, context, answer.add)
    write(answer.as_chat(request, head))
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from dynamo.errors import ModelNotFoundError
from dynamo.llm.detokenizer import Detokenizer
from dynamo.llm.loaded_model import LoadedModel
from dynamo.llm.migration import Migration
from dynamo.llm.migration_config import MigrationConfig
from dynamo.llm.preprocessor import ChatPreprocessor, CompletionPreprocessor
from dynamo.llm.sequence import TextOutput
from dynamo.llm.text_engine import TextEngine
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest, TextEngineOutput
from dynamo.protocols.model_card import ModelCard, ModelInput, ModelType
from dynamo.protocols.openai import ChatCompletionRequest, CompletionRequest, JsonObject, decode_object
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver, Stage


class Router(Protocol):
    """The network edge: chooses a worker."""

    async def generate(
        self, request: PreprocessedRequest, context: Context, deliver: Deliver[LLMEngineOutput]
    ) -> None: ...

    async def generate_text(
        self, request: JsonObject, context: Context, deliver: Deliver[TextEngineOutput]
    ) -> None: ...


class Pipeline(Protocol):
    """Answers requests to one model, as a Stage does. `body` is what `request` was decoded from.

    The last output of each choice has a finish_reason.
    """

    @property
    def idle(self) -> bool:
        """Whether no request is under way that may yet need another worker than the one that it has."""
        ...

    async def until_idle(self) -> None: ...

    async def chat(
        self, request: ChatCompletionRequest, body: bytes, context: Context, deliver: Deliver[TextOutput]
    ) -> None: ...

    async def completion(
        self, request: CompletionRequest, body: bytes, context: Context, deliver: Deliver[TextOutput]
    ) -> None: ...


def build_pipeline(
    card: ModelCard,
    files: Mapping[str, bytes],
    router: Router,
    migration: MigrationConfig | None = None,
    on_move: Callable[[], None] = lambda: None,
) -> Pipeline:
    """The path to the workers that `card` describes; `files` maps the card's artifacts to their content.

    `migration`: what becomes of requests whose worker is lost, by default as the flags' defaults say; `on_move` is
    called whenever one goes on elsewhere. Takes up to a second for a large tokenizer. Raises ConfigError when the files
    can't be used.
    """
    if card.model_input is ModelInput.Text:
        return TextPipeline(card, router.generate_text)
    return TokenPipeline(LoadedModel.load(card, files), router.generate, migration, on_move)


class TokenPipeline:
    """For workers that are given token ids."""

    def __init__(
        self,
        model: LoadedModel,
        tokens: Stage[PreprocessedRequest, LLMEngineOutput],
        migration: MigrationConfig | None = None,
        on_move: Callable[[], None] = lambda: None,
    ) -> None:
        """`tokens` chooses a worker for each request; the others as in build_pipeline."""
        self._migration = Migration(
            tokens, migration or MigrationConfig(), context_length=model.card.context_length, on_move=on_move
        )
        text = Detokenizer(self._migration, model.tokenizer)
        self._chat = ChatPreprocessor(text, model)
        self._completion = CompletionPreprocessor(text, model)
        self._card = model.card

    @property
    def idle(self) -> bool:
        return self._migration.idle

    async def until_idle(self) -> None:
        await self._migration.until_idle()

    async def chat(
        self, request: ChatCompletionRequest, body: bytes, context: Context, deliver: Deliver[TextOutput]
    ) -> None:
        _require_type(self._card, ModelType.Chat, "chat")
        await self._chat(request, context, deliver)

    async def completion(
        self, request: CompletionRequest, body: bytes, context: Context, deliver: Deliver[TextOutput]
    ) -> None:
        _require_type(self._card, ModelType.Completions, "completion")
        await self._completion(request, context, deliver)


class TextPipeline:
    """For workers that are given the OpenAI request."""

    def __init__(self, card: ModelCard, chunks: Stage[JsonObject, TextEngineOutput]) -> None:
        self._text = TextEngine(chunks)
        self._card = card
        self.idle = True  # what a worker has begun, no other can finish

    async def until_idle(self) -> None:
        """There is nothing to wait for."""

    async def chat(
        self, request: ChatCompletionRequest, body: bytes, context: Context, deliver: Deliver[TextOutput]
    ) -> None:
        _require_type(self._card, ModelType.Chat, "chat")
        await self._text(decode_object(body), context, deliver)

    async def completion(
        self, request: CompletionRequest, body: bytes, context: Context, deliver: Deliver[TextOutput]
    ) -> None:
        _require_type(self._card, ModelType.Completions, "completion")
        await self._text(decode_object(body), context, deliver)


def _require_type(card: ModelCard, kind: ModelType, name: str) -> None:
    if not card.model_type & kind.value:
        raise ModelNotFoundError(f"The model {card.name!r} answers no {name} requests.", param="model")
