"""Prompts of an exact number of tokens, no two of them alike."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from dynamo.llm.chat_template import ChatTemplate
from dynamo.llm.model_card import artifact_paths
from dynamo.llm.tokenizer import Tokenizer
from dynamo.protocols.openai.messages import Message

_TEXT = (
    "the people of this small town have always known that water from a river can be used for more than one thing and "
    "they said it was good to learn how other places live when there is not much rain in the year "
)
_DIGITS_MIN = 12  # the microseconds of eleven days: no two runs of these use the same numbers


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A text that begins with a number: other digits make another prompt of the same length."""

    digits: int
    words: str
    tokens: int  # the chat template's included

    def unique(self) -> Iterator[str]:
        """Texts without end. They differ at their start, so that no prefix cache can help."""
        number = time.time_ns() // 1000
        while True:
            number += 1
            digits = f"{number % 10**self.digits:0{self.digits}}"
            yield f"{digits[::-1]} {self.words}"


def build_prompt(model_dir: Path, tokens: int) -> Prompt:
    """As many words as fit into a chat prompt of `tokens` tokens; the number takes what is left.

    Raises ValueError when there is no such prompt, as for a tokenizer that joins digits.
    """
    files = {name: path.read_bytes() for name, path in artifact_paths(model_dir).items()}
    prompt, length = asyncio.run(_longest(files, tokens))
    if length != tokens:
        raise ValueError(f"cannot build a prompt of {tokens} tokens for {model_dir}")
    return prompt


async def _longest(files: Mapping[str, bytes], tokens: int) -> tuple[Prompt, int]:
    tokenizer, template = Tokenizer(files), ChatTemplate.from_files(files)

    async def length(prompt: Prompt) -> int:
        content = next(prompt.unique())
        text = content if template is None else template.render([Message(role="user", content=content)])
        (ids,) = await tokenizer.encode([text], add_special_tokens=False)
        return len(ids)

    best = Prompt(digits=_DIGITS_MIN, words="", tokens=tokens)
    words = (_TEXT * (1 + tokens // len(_TEXT.split()))).split()
    for count in range(1, len(words)):
        longer = msgspec.structs.replace(best, words=" ".join(words[:count]))
        if await length(longer) > tokens:
            break
        best = longer
    missing = max(0, tokens - await length(best))
    best = msgspec.structs.replace(best, digits=_DIGITS_MIN + missing)
    return best, await length(best)
