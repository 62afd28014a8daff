"""Ends a text where a stop string completes, and lets nothing of the stop string out."""


class StopStrings:
    """Watches one text for several stop strings.

    The stop string that completes first ends the text, the longest one where several complete at the same character;
    so the result does not depend on how the text was cut into pieces.
    """

    __slots__ = ("_firsts", "_held", "_stops")

    def __init__(self, stops: tuple[str, ...]) -> None:
        """`stops`: at least one, none empty."""
        self._stops = stops
        self._firsts = frozenset(stop[0] for stop in stops)
        self._held = ""  # what may be the start of a stop string

    def push(self, text: str) -> tuple[str, bool]:
        """What may go out now, and whether a stop string was found, after which nothing more may be pushed."""
        if not self._held and self._firsts.isdisjoint(text):
            return text, False
        text = self._held + text
        found = self._find(text)
        if found is not None:
            self._held = ""
            return text[:found], True
        cut = min([_possible_start(text, stop) for stop in self._stops])
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """What is still held back; the text ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str) -> int | None:
        """Where the stop string starts that completes first."""
        places = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(places)[1] if places else None


def _possible_start(text: str, stop: str) -> int:
    """Where the longest end of `text` starts that `stop` begins with; the length of `text` when there is none."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return start if start >= 0 else len(text)
