"""Puts tool calls together from the pieces in which they are streamed."""

from collections.abc import Iterable

from msgspec import UNSET

from dynamo.protocols.openai.responses import CompletedFunction, CompletedToolCall, ToolCallDelta


class ToolCallParts:
    """The calls of one answer. Pieces of equal index belong together, and their arguments follow on."""

    def __init__(self) -> None:
        self._calls: dict[int, CompletedToolCall] = {}

    def add(self, pieces: Iterable[ToolCallDelta]) -> None:
        for piece in pieces:
            call = self._calls.get(piece.index)
            if call is None:
                call = CompletedToolCall(id="", type="function", function=CompletedFunction(name="", arguments=""))
                self._calls[piece.index] = call
            call.id = piece.id or call.id
            call.type = piece.type or call.type
            if piece.function is not UNSET and piece.function is not None:
                call.function.name = piece.function.name or call.function.name
                call.function.arguments += piece.function.arguments or ""

    def complete(self) -> list[CompletedToolCall]:
        """The calls, in the order of their index."""
        return [self._calls[index] for index in sorted(self._calls)]
