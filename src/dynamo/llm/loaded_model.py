"""What the request path knows of a model that deals in tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

from dynamo.llm.chat_template import ChatTemplate
from dynamo.llm.tokenizer import Tokenizer
from dynamo.llm.tokenizer_config import SamplingDefaults, sampling_defaults
from dynamo.protocols.model_card import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model card and what its files say."""

    card: ModelCard
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    defaults: SamplingDefaults

    @classmethod
    def load(cls, card: ModelCard, files: Mapping[str, bytes]) -> "LoadedModel":
        """`files`: name in the model directory -> content. Takes up to a second; ConfigError if they can't be used."""
        return cls(
            card=card,
            tokenizer=Tokenizer(files),
            chat_template=ChatTemplate.from_files(files),
            defaults=sampling_defaults(files),
        )
