"""Token ids to text, a few at a time: characters are never split, and nothing is lost at the end."""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

from dynamo.llm.vocabulary import Spelling

REPLACEMENT = "\ufffd"
CHARACTER_TOKENS_MAX = 8  # more tokens than any character takes: what is still broken then stays so


class TextDecoder(Protocol):
    """Decodes one sequence."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is certain now; bytes of an unfinished character wait."""
        ...

    def flush(self) -> str:
        """What still waits, broken characters as U+FFFD; the sequence ends here."""
        ...


class SpellingDecoder:
    """For vocabularies whose tokens have fixed bytes.

    All that was pushed equals `tokenizer.decode(ids)`, with one exception: of a run of byte-fallback tokens that is
    not UTF-8 the tokenizers library replaces every byte, also of the whole characters in it. Here those characters
    stay, as they have long been streamed, and each broken sequence becomes one U+FFFD.
    """

    __slots__ = ("_pending", "_spelling", "_strip")

    def __init__(self, spelling: Spelling, *, strip_first_space: bool = False) -> None:
        self._spelling = spelling
        self._strip = strip_first_space
        self._pending = b""  # the start of a character

    def push(self, token_ids: Sequence[int]) -> str:
        if len(token_ids) == 1 and not self._pending and not self._strip:
            token_id = token_ids[0]
            try:
                text = self._spelling[token_id]
            except IndexError:
                return ""
            if isinstance(text, str) and token_id >= 0:  # nearly always
                return text
        return self._push(token_ids)

    def flush(self) -> str:
        text = self._pending.decode(errors="replace")
        self._pending = b""
        return text

    def _push(self, token_ids: Sequence[int]) -> str:
        spelling = self._spelling
        size = len(spelling)
        pieces = [spelling[token_id] for token_id in token_ids if 0 <= token_id < size]
        data = self._pending + b"".join([piece.encode() if isinstance(piece, str) else piece for piece in pieces])
        text, length = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[length:]
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class WindowDecoder:
    """For all other tokenizers: decodes the last few tokens again with each new one.

    A token's text may depend on its neighbour on the left, so the new text is what a window with the token has over
    the same window without it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._done = 0  # tokens at the start of the window whose text is out
        self._text = ""  # what they decode to

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([self._push(token_id) for token_id in token_ids])

    def flush(self) -> str:
        return self._advance(self._decode(self._window))

    def _push(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and len(self._window) - self._done < CHARACTER_TOKENS_MAX:
            return ""
        return self._advance(text)

    def _advance(self, text: str) -> str:
        new = text[len(self._text) :]
        if new:
            del self._window[: self._done]
            self._done = len(self._window)
            self._text = self._decode(self._window)
        else:  # special tokens: without them the window stays small
            del self._window[self._done :]
        return new
