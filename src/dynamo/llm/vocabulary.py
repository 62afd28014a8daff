"""From token ids to the bytes they stand for.

Nearly all models spell text in one of two ways, and in both every token stands for bytes of its own: byte-level BPE
(GPT-2's alphabet, in which each byte is one letter) and SentencePiece with byte fallback (a space is "▁", a byte that
no token covers is "<0x0A>"). Knowing the bytes makes decoding a look-up in a list. `Vocabulary.of` returns None for
the few tokenizers whose tokens mean different text in different places.
"""

import re
from collections.abc import Callable, Mapping

from tokenizers import AddedToken, Tokenizer

from dynamo.llm.tokenizer_file import Step, TokenizerFile, steps

SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _letters_of_bytes() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, the others the letters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(0x100) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_LETTER = _letters_of_bytes()
# For str.translate(): letters become their bytes, what is none becomes something that is no byte.
_BYTE_LEVEL = dict.fromkeys(range(0x100), 0x100) | {ord(letter): byte for letter, byte in BYTE_OF_LETTER.items()}


def byte_level(token: str) -> bytes:
    """The bytes of a token that is written in `BYTE_OF_LETTER`."""
    try:
        return token.translate(_BYTE_LEVEL).encode("latin-1")
    except UnicodeEncodeError:  # an added token, written as it is
        return token.encode()


def _byte_fallback(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()


Spelling = list[str | bytes]
"""By token id, what a token adds to the text: a str where its bytes are whole characters, else bytes."""


class Vocabulary:
    """The bytes of each token of a tokenizer."""

    def __init__(
        self,
        model_tokens: Mapping[str, int],
        added: Mapping[int, AddedToken],
        spell: Callable[[str], bytes],
        *,
        strips_first_space: bool,
    ) -> None:
        """`model_tokens`: the ids of the model's own tokens, `added`: the others, `spell`: the bytes of a token.

        All are spelled here and now, so that no request has to do it: 0.05 s and 3.5 MB for 50,000.
        """
        tokens = _by_id(model_tokens, added)
        self.strips_first_space = strips_first_space  # of a text, not of one that goes on
        self.complete: Spelling = [_text_if_whole(spell(token)) for token in tokens]
        self.visible = self.complete.copy()
        for i, token in added.items():
            if token.special:
                self.visible[i] = ""

    @classmethod
    def of(cls, tokenizer: Tokenizer, model_tokens: Mapping[str, int], file: TokenizerFile) -> "Vocabulary | None":
        """The vocabulary of `tokenizer`, made from `file`; None where tokens have no fixed bytes.

        `model_tokens`: the ids of the model's own tokens.
        """
        added = tokenizer.get_added_tokens_decoder()
        decoder = steps(file.decoder)
        match [step.type for step in decoder]:
            case ["ByteLevel"]:
                return cls(model_tokens, added, byte_level, strips_first_space=False)
            case ["Replace", "ByteFallback", "Fuse"] if _is_space(decoder[0]):
                return cls(model_tokens, added, _byte_fallback, strips_first_space=False)
            case ["Replace", "ByteFallback", "Fuse", "Strip"] if _is_space(decoder[0]) and _is_first_space(decoder[3]):
                return cls(model_tokens, added, _byte_fallback, strips_first_space=True)
        return None

    def raw(self, token_id: int) -> bytes:
        """The bytes of a token, special ones included; none for an id that does not exist."""
        piece = self.complete[token_id] if 0 <= token_id < len(self.complete) else b""
        return piece.encode() if isinstance(piece, str) else piece


def _by_id(model_tokens: Mapping[str, int], added: Mapping[int, AddedToken]) -> list[str]:
    """All tokens in the order of their ids, "" where there is none."""
    tokens = [""] * (max([*model_tokens.values(), *added], default=-1) + 1)
    for text, i in model_tokens.items():
        tokens[i] = text
    for i, token in added.items():
        tokens[i] = token.content
    return tokens


def _text_if_whole(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _is_space(replace: Step) -> bool:
    return replace.pattern == {"String": SPACE} and replace.content == " "


def _is_first_space(strip: Step) -> bool:
    return (strip.content, strip.start, strip.stop) == (" ", 1, 0)
