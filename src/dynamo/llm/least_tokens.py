"""The least number of tokens that a text can have, known without tokenizing it.

It serves to refuse what is far too long: tokenizing takes a second and a hundred megabytes for each megabyte of text.
"""

from collections.abc import Callable, Collection, Set

from tokenizers import Tokenizer

from dynamo.llm.tokenizer_file import AddedToken, Model, Step, TokenizerFile, steps
from dynamo.llm.vocabulary import BYTE_OF_LETTER, SPACE, byte_level

# The steps that can stand before the model and take no byte from a text, but for _step_keeps_text() and NFC.
_COMMON_STEPS = {"NFC", "Prepend", "Digits", "Punctuation", "Split", "UnicodeScripts"}
_BYTE_LEVEL_STEPS = _COMMON_STEPS | {"ByteLevel"}
_BYTE_FALLBACK_STEPS = _COMMON_STEPS | {"Replace", "Metaspace"}
_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(0x100))

# A byte of a text is a space, other white space, or something else.
_KINDS = bytes(0x20 if byte == 0x20 else 0x09 if byte in b"\t\n\v\f\r" else 0x78 for byte in range(0x100))
_WORD_END = b"x "
_WORDS_WITHIN_BYTES = 4 << 20  # takes some 20 ms and holds more words than most contexts have tokens
_NFC_SHRINKS_MAX = 4  # U+1FBE U+0308 U+0301, seven bytes of UTF-8, become the two of U+0390: nothing shrinks more


class LeastTokens:
    """Two bounds that hold whatever the merges are and wherever words are cut.

    All they need is that the bytes of the tokens in a row are those of the text. No token is longer than the longest.
    And the end of a word, a space after something else, lies inside a token or between two: most vocabularies have no
    token with such an end inside, so that a text has at least as many tokens as ends of words.
    """

    def __init__(self, tokens: Collection[bytes], read: Callable[[str], bytes], *, composes: bool) -> None:
        """`tokens`: the bytes of each; `read`: those of a text that count; `composes`: NFC may make them fewer."""
        self._read = read
        self._composes = composes
        self._bytes_max = max([1, *map(len, tokens)])
        self._word_ends_max = max([0, *map(_word_ends, tokens)]) + 1  # one where the next token begins

    @classmethod
    def of(cls, tokenizer: Tokenizer, model_tokens: Set[str], file: TokenizerFile) -> "LeastTokens | None":
        """The bounds for `tokenizer`, made from `file`; None where any amount of text may give no token.

        `model_tokens`: the model's own tokens.
        """
        path = [*steps(file.normalizer), *steps(file.pre_tokenizer)]
        keep_text = [*map(_step_keeps_text, path), *map(_added_token_keeps_text, file.added_tokens)]
        if not (_is_plain_bpe(file.model) and all(keep_text)):
            return None
        types = {step.type for step in path}
        composes = "NFC" in types
        spell: Callable[[str], bytes]
        unknown = BYTE_OF_LETTER.keys() - model_tokens
        if "ByteLevel" in types and types <= _BYTE_LEVEL_STEPS and not (unknown and composes):
            spell, read = byte_level, _reader_without(unknown)
        elif file.model.byte_fallback and types <= _BYTE_FALLBACK_STEPS and model_tokens >= _BYTE_TOKENS:
            spell = read = _with_spaces
        else:
            return None
        added = [read(form) for token in file.added_tokens for form in _forms(token, tokenizer)]
        return cls([*map(spell, model_tokens), *added], read, composes=composes)

    def __call__(self, text: str) -> int:
        """A number of tokens that `text` is sure to have, not counting any that the tokenizer puts around it."""
        data = self._read(text)
        size = len(data) // _NFC_SHRINKS_MAX if self._composes and not text.isascii() else len(data)
        word_ends = _word_ends(data[:_WORDS_WITHIN_BYTES])  # NFC neither makes nor takes any
        return max(_ceil(size, self._bytes_max), _ceil(word_ends, self._word_ends_max))


def _is_plain_bpe(model: Model) -> bool:
    return model.type == "BPE" and not model.continuing_subword_prefix and not model.end_of_word_suffix


def _step_keeps_text(step: Step) -> bool:
    match step.type:
        case "Split" | "Punctuation":
            return step.behavior != "Removed"
        case "Replace":
            return step.pattern == {"String": " "} and step.content == SPACE
        case "Metaspace":
            return step.replacement == SPACE
    return True


def _added_token_keeps_text(token: AddedToken) -> bool:
    """With either flag it takes any number of spaces with it."""
    return not token.lstrip and not token.rstrip


def _forms(token: AddedToken, tokenizer: Tokenizer) -> list[str]:
    """The texts that an added token can stand for."""
    if not token.normalized or tokenizer.normalizer is None:
        return [token.content]
    return [token.content, tokenizer.normalizer.normalize_str(token.content)]


def _reader_without(unknown: Collection[str]) -> Callable[[str], bytes]:
    """Reads a text as a byte-level tokenizer does, which drops the bytes whose letters its vocabulary lacks."""
    if not unknown:
        return str.encode
    dropped = bytes(BYTE_OF_LETTER[letter] for letter in unknown)
    return lambda text: text.encode().translate(None, dropped)


def _with_spaces(text: str) -> bytes:
    """With byte fallback "▁" is a space, in a text as in a token."""
    return text.replace(SPACE, " ").encode()


def _word_ends(data: bytes) -> int:
    return data.translate(_KINDS).count(_WORD_END)


def _ceil(amount: int, share: int) -> int:
    return -(-amount // share)
