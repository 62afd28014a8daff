"""Cuts what a program prints into lines, progress bars included. Pure."""

import codecs

LINE_CHARS_MAX = 8 << 10


class OutputLines:
    """Fed with bytes, gives (text, complete): whole lines, and what a progress bar shows at the moment.

    A progress bar writes carriage returns instead of newlines; of what it has written only the latest counts.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode  # a read may split a character
        self._pending = ""

    def feed(self, data: bytes) -> list[tuple[str, bool]]:
        text = self._pending + self._decode(data)
        *lines, pending = text.replace("\r\n", "\n").split("\n")
        found = [(_shown(line), True) for line in lines]
        if "\r" in pending:
            shown = _shown(pending)
            found.append((shown, False))
            pending = shown + "\r" * pending.endswith("\r")
        self._pending = pending[-LINE_CHARS_MAX:]
        return found

    def end(self) -> list[tuple[str, bool]]:
        """The last line, if no newline ended it."""
        left, self._pending = _shown(self._pending), ""
        return [(left, True)] if left else []


def _shown(text: str) -> str:
    return text.strip("\r").rpartition("\r")[2]
