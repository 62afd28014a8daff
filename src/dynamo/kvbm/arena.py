"""Host memory for the slots of one pool, which engines map too."""

import os
from collections.abc import Callable

from dynamo.errors import InvalidRequestError, OverloadedError
from dynamo.runtime.free_memory import available_memory_bytes
from dynamo.transfer.memory import view_of
from dynamo.transfer.shared_memory import Mapping, anonymous_file

MARGIN_BYTES = 512 << 20  # that the machine keeps for everything else


class HostArena:
    """An anonymous file, as large as the pool may become, and as much of it backed by memory as was grown so far.

    Pages that nobody has asked the kernel for would be asked for by an engine's first access, and where there are none
    left, that kills it. So nobody is given a slot that is not ready.

    It outlives this object for those who have mapped it: an engine that copies a block while the service ends copies
    the right one.
    """

    def __init__(
        self, slots: int, slot_bytes: int, *, available_bytes: Callable[[], int] = available_memory_bytes
    ) -> None:
        """Takes address space only. Raises InvalidRequestError for no slots, OverloadedError for too many."""
        self.fd = -1
        if slots < 1:
            raise InvalidRequestError("a pool needs memory for one block at least")
        self.slots = slots
        self.slot_bytes = slot_bytes
        self.ready = 0
        self._available_bytes = available_bytes
        try:
            self.fd = anonymous_file("dynamo-kvbm", self.memory_bytes)
            self._mapping = Mapping(self.fd, self.memory_bytes, writable=True)
        except (OSError, OverflowError) as error:
            raise OverloadedError(f"no address space for {self.memory_bytes} bytes: {error}") from error
        self._mapping.prefer_huge_pages()
        self.memory = view_of(self._mapping.address, self._mapping.size_bytes, self._mapping)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    @property
    def memory_bytes(self) -> int:
        return self.slots * self.slot_bytes

    def slot(self, index: int) -> memoryview:
        """One slot's bytes; the view keeps the memory."""
        return self.memory[index * self.slot_bytes : (index + 1) * self.slot_bytes]

    def grow(self, slots: int) -> int:
        """Makes up to so many more slots ready, as far as free memory allows; how many. For a thread."""
        affordable = (self._available_bytes() - MARGIN_BYTES) // self.slot_bytes
        count = max(0, min(slots, self.slots - self.ready, affordable))
        if count:
            try:
                os.posix_fallocate(self.fd, self.ready * self.slot_bytes, count * self.slot_bytes)
            except OSError:
                return 0
        self.ready += count
        return count

    def give_back(self) -> None:
        """The machine has the memory again, whoever may still have a view of it. For when nobody uses the slots."""
        self._mapping.give_back()
