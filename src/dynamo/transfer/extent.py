"""What blocks are blocks of: so many bytes under a number that the agent gave them."""

from collections.abc import Iterable

from dynamo.errors import InvalidRequestError
from dynamo.transfer.blocks import Blocks


class Extent:
    """Registered memory, a file, or objects."""

    __slots__ = ("_agent", "id", "size_bytes", "writable")

    def __init__(self, agent: str, extent_id: int, size_bytes: int, writable: bool) -> None:
        self._agent = agent
        self.id = extent_id
        self.size_bytes = size_bytes
        self.writable = writable

    def blocks(self, offsets: Iterable[int], size_bytes: int) -> Blocks:
        """Blocks of one size, at these offsets in bytes. Raises InvalidRequestError for those that lie outside."""
        offsets = list(offsets)
        if (
            size_bytes < 0
            or min(offsets, default=0) < 0
            or max(offsets, default=-size_bytes) + size_bytes > self.size_bytes
        ):
            raise InvalidRequestError(f"the region has {self.size_bytes} bytes, blocks lie outside of it")
        return Blocks.of(self._agent, self.id, offsets, [size_bytes] * len(offsets))

    def all(self) -> Blocks:
        """The whole of it as one block."""
        return self.blocks([0], self.size_bytes)
