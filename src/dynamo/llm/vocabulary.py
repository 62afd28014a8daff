"""From token ids to the bytes they stand for.

Nearly all models spell text in one of two ways, and in both every token stands for bytes of its own: byte-level BPE
(GPT-2's alphabet, in which each byte is one letter) and SentencePiece with byte fallback (a space is "▁", a byte that
no token covers is "<0x0A>"). Knowing the bytes makes decoding a dictionary look-up. `Vocabulary.of` returns None for
the few tokenizers whose tokens mean different text in different places.
"""

import re
from collections.abc import Callable

import msgspec
from tokenizers import Tokenizer

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class _DecoderSpec(msgspec.Struct):
    """The "decoder" of tokenizer.json, as far as it matters here."""

    type: str
    decoders: list["_DecoderSpec"] = []
    pattern: dict[str, str] = {}
    content: str = ""
    start: int = 0
    stop: int = 0


class _TokenizerFile(msgspec.Struct):
    decoder: _DecoderSpec | None = None


def _letters_of_bytes() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, the others the letters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(0x100) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_LETTER = _letters_of_bytes()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF_LETTER[letter] for letter in token])
    except KeyError:  # an added token, written as it is
        return token.encode()


def _byte_fallback(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()


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
    def of(cls, tokenizer: Tokenizer, tokenizer_json: bytes) -> "Vocabulary | None":
        """The vocabulary of `tokenizer`, read from `tokenizer_json`; None where tokens have no fixed bytes."""
        decoder = msgspec.json.decode(tokenizer_json, type=_TokenizerFile).decoder
        steps = [] if decoder is None else decoder.decoders or [decoder]
        match [step.type for step in steps]:
            case ["ByteLevel"]:
                return cls(tokenizer, _byte_level, strips_first_space=False)
            case ["Replace", "ByteFallback", "Fuse"] if _is_space(steps[0]):
                return cls(tokenizer, _byte_fallback, strips_first_space=False)
            case ["Replace", "ByteFallback", "Fuse", "Strip"] if _is_space(steps[0]) and _is_first_space(steps[3]):
                return cls(tokenizer, _byte_fallback, strips_first_space=True)
        return None

    def raw(self, token_id: int) -> bytes:
        """The bytes of a token, special ones included; none for an id that does not exist."""
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else self._spell(token)


def _is_space(replace: _DecoderSpec) -> bool:
    return replace.pattern == {"String": _SPACE} and replace.content == " "


def _is_first_space(strip: _DecoderSpec) -> bool:
    return (strip.content, strip.start, strip.stop) == (" ", 1, 0)
