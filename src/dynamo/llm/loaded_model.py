"""What the request path knows of a model that deals in tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dynamo.llm.chat_template import ChatTemplate
from dynamo.llm.prompt_limits import check_least
from dynamo.llm.tokenizer import Tokenizer
from dynamo.llm.tokenizer_config import SamplingDefaults, sampling_defaults
from dynamo.protocols.model_card import ModelCard
from dynamo.tokens import TokenArray


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

    async def encode(self, prompts: Sequence[str], *, add_special_tokens: bool, field: str) -> list[TokenArray]:
        """The token ids of prompts, which the request has in `field`.

        Raises ContextLengthExceededError, and tokenizes nothing, where a prompt is so long that it cannot fit.
        """
        context_length = self.card.context_length
        for prompt in prompts:
            if context_length is not None and len(prompt) > context_length:  # a shorter one is soon tokenized
                check_least(self.tokenizer.least_tokens(prompt), context_length=context_length, field=field)
        return await self.tokenizer.encode(prompts, add_special_tokens=add_special_tokens)
