"""Text to token ids and back, from the files of a model directory."""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
import tokenizers

from dynamo.errors import ConfigError
from dynamo.llm.least_tokens import LeastTokens
from dynamo.llm.text_decoder import SpellingDecoder, TextDecoder, WindowDecoder
from dynamo.llm.tokenizer_config import eos_ids, read_json, special_tokens, vocabulary_size
from dynamo.llm.tokenizer_file import TokenizerFile
from dynamo.llm.vocabulary import Vocabulary
from dynamo.tokens import TokenArray, token_array

# About 1.5 ms of work: a longer text is encoded in a thread, which costs 0.15 ms but lets the event loop go on.
INLINE_CHARS_MAX = 4_000


class Tokenizer:
    """The tokenizer of one model. Safe to share: it is never changed."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """`files` maps the names in a model directory to their content; raises ConfigError if they can't be used.

        tokenizer.json must be there; tokenizer_config.json, special_tokens_map.json, generation_config.json and
        config.json are read where they are.
        """
        self._tokenizer = _load(files)
        file = msgspec.json.decode(files["tokenizer.json"], type=TokenizerFile)
        model_tokens = self._tokenizer.get_vocab(with_added_tokens=False)
        self._vocabulary = Vocabulary.of(self._tokenizer, model_tokens, file)
        self._least_tokens = LeastTokens.of(self._tokenizer, model_tokens.keys(), file)
        self.special_tokens = special_tokens(files)
        self.bos_token_id = self._id_of("bos_token")
        self.eos_token_ids = self._eos_token_ids(files)
        config = read_json(files, "config.json")
        self.vocab_size = vocabulary_size(config) or self._tokenizer.get_vocab_size(with_added_tokens=True)

    async def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[TokenArray]:
        """The token ids of each text, with the special tokens that the tokenizer puts around a text if asked to.

        A BOS that the text already starts with is not doubled.
        """
        if sum(map(len, texts)) <= INLINE_CHARS_MAX:
            return self._encode(texts, add_special_tokens)
        return await asyncio.to_thread(self._encode, texts, add_special_tokens)

    def least_tokens(self, text: str) -> int:
        """A number of tokens that `text` is sure to have, found at once; 0 where nothing is sure."""
        return 0 if self._least_tokens is None else self._least_tokens(text)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def decoder(self, *, continues: bool = False, special_tokens: bool = False) -> TextDecoder:
        """A decoder for one sequence.

        `continues`: the text goes on after another one, so that a tokenizer which drops the space before the first
        word must keep it. `special_tokens`: they are part of the text.
        """
        vocabulary = self._vocabulary
        if vocabulary is None:
            return WindowDecoder(lambda ids: self.decode(ids, skip_special_tokens=not special_tokens))
        spelling = vocabulary.complete if special_tokens else vocabulary.visible
        return SpellingDecoder(spelling, strip_first_space=vocabulary.strips_first_space and not continues)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, special ones included; a token can be a part of a character."""
        if self._vocabulary is None:
            return self.decode([token_id], skip_special_tokens=False).encode()
        return self._vocabulary.raw(token_id)

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[TokenArray]:
        # Unlike encode() this releases the GIL, so that in a thread it does not hold up the event loop.
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        sequences = [token_array(encoding.ids) for encoding in encodings]
        return [self._without_double_bos(ids) for ids in sequences] if add_special_tokens else sequences

    def _without_double_bos(self, ids: TokenArray) -> TokenArray:
        doubled = len(ids) > 1 and ids[0] == ids[1] == self.bos_token_id
        return ids[1:] if doubled else ids

    def _id_of(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._tokenizer.token_to_id(text)

    def _eos_token_ids(self, files: Mapping[str, bytes]) -> tuple[int, ...]:
        """All that end an answer: the model may stop at any of them."""
        ids = eos_ids(read_json(files, "generation_config.json"))
        own = self._id_of("eos_token")
        ids += [] if own is None else [own]
        ids += eos_ids(read_json(files, "config.json"))
        return tuple(dict.fromkeys(ids))


def _load(files: Mapping[str, bytes]) -> tokenizers.Tokenizer:
    if "tokenizer.json" not in files:
        raise ConfigError("the model has no tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as error:  # the library raises nothing more precise
        raise ConfigError(f"tokenizer.json cannot be used: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
