"""From token ids to the bytes they stand for.

Nearly all models spell text in one of two ways, and in both every token stands for bytes of its own: byte-level BPE
(GPT-2's alphabet, in which each byte is one letter) and SentencePiece with byte fallback (a space is "▁", a byte that
no token covers is "<0x0A>"). Knowing the bytes makes decoding a dictionary look-up. `Vocabulary.of` returns None for
the few tokenizers whose tokens mean different text in different places.
"""

import re
from collections.abc import Callable

from tokenizers import Tokenizer

from dynamo.llm.tokenizer_file import Step, TokenizerFile, steps

SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _letters_of_bytes() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, the others the letters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(0x100) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_LETTER = _letters_of_bytes()


def byte_level(token: str) -> bytes:
    """The bytes of a token that is written in `BYTE_OF_LETTER`."""
    try:
        return bytes([BYTE_OF_LETTER[letter] for letter in token])
    except KeyError:  # an added token, written as it is
        return token.encode()


def _byte_fallback(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()


class Spelling(dict[int, str | bytes]):
    """What a token adds to the text: a str where its bytes are whole characters, else bytes; filled as needed."""

    def __init__(self, raw: Callable[[int], bytes], hidden: frozenset[int]) -> None:
        super().__init__()
        self._raw = raw
        self._hidden = hidden

    def __missing__(self, token_id: int) -> str | bytes:
        raw = b"" if token_id in self._hidden else self._raw(token_id)
        try:
            text: str | bytes = raw.decode()
        except UnicodeDecodeError:
            text = raw
        self[token_id] = text
        return text


class Vocabulary:
    """The bytes of each token of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, spell: Callable[[str], bytes], *, strips_first_space: bool) -> None:
        special = frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
        self._tokenizer = tokenizer
        self._spell = spell
        self.strips_first_space = strips_first_space  # of a text, not of one that goes on
        self.visible = Spelling(self.raw, special)  # special tokens give no text
        self.complete = Spelling(self.raw, frozenset())

    @classmethod
    def of(cls, tokenizer: Tokenizer, file: TokenizerFile) -> "Vocabulary | None":
        """The vocabulary of `tokenizer`, made from `file`; None where tokens have no fixed bytes."""
        decoder = steps(file.decoder)
        match [step.type for step in decoder]:
            case ["ByteLevel"]:
                return cls(tokenizer, byte_level, strips_first_space=False)
            case ["Replace", "ByteFallback", "Fuse"] if _is_space(decoder[0]):
                return cls(tokenizer, _byte_fallback, strips_first_space=False)
            case ["Replace", "ByteFallback", "Fuse", "Strip"] if _is_space(decoder[0]) and _is_first_space(decoder[3]):
                return cls(tokenizer, _byte_fallback, strips_first_space=True)
        return None

    def raw(self, token_id: int) -> bytes:
        """The bytes of a token, special ones included; none for an id that does not exist."""
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else self._spell(token)


def _is_space(replace: Step) -> bool:
    return replace.pattern == {"String": SPACE} and replace.content == " "


def _is_first_space(strip: Step) -> bool:
    return (strip.content, strip.start, strip.stop) == (" ", 1, 0)
