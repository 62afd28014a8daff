"""The simulated KV cache: how many blocks there are, and which prefixes they hold."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol


class CacheObserver(Protocol):
    """Is told which blocks can be found by their sequence hash."""

    def stored(self, sequence_hashes: Sequence[int], parent: int | None) -> None:
        """These consecutive blocks came into the cache, after the block `parent` (None: at the start)."""
        ...

    def removed(self, sequence_hashes: Sequence[int]) -> None:
        """These blocks were evicted."""
        ...


class BlockPool:
    """A fixed number of blocks, each free, private, shared or cached.

    A private block belongs to one sequence: it is not full yet, or nothing may reuse it. Nobody can ask for one by
    name, so they are only counted. A shared block is full, named by its sequence hash, and counts the sequences that
    use it. When the last one lets go it stays as a cached block, until it is used again or its room is needed; the one
    that was let go longest ago makes room first.

    A sequence gives its blocks back last block first, so no block leaves the cache before those that follow it: what
    the cache holds is always whole prefixes.
    """

    def __init__(self, num_blocks: int, observer: CacheObserver | None = None) -> None:
        self.num_blocks = num_blocks
        self.observer = observer  # may come later, while the pool is empty
        self._private = 0
        self._users: dict[int, int] = {}  # sequence hash of a shared block -> sequences that use it, at least one
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def used(self) -> int:
        """Blocks that some sequence holds."""
        return self._private + len(self._users)

    @property
    def cached(self) -> int:
        """Blocks that nobody holds but whose content can be used again."""
        return len(self._cached)

    @property
    def free(self) -> int:
        """Blocks without content."""
        return self.num_blocks - self.used - self.cached

    def match(self, sequence_hashes: Sequence[int]) -> int:
        """How many of these consecutive blocks, from the first on, are present."""
        for count, sequence_hash in enumerate(sequence_hashes):
            if sequence_hash not in self._users and sequence_hash not in self._cached:
                return count
        return len(sequence_hashes)

    def allocate(self, private: int, reused: Sequence[int] = ()) -> bool:
        """Takes the blocks `reused`, which must be present, and `private` new ones; False if there is no room.

        Nothing is taken then.
        """
        revived = [sequence_hash for sequence_hash in reused if sequence_hash in self._cached]
        if private > self.num_blocks - self.used - len(revived):
            return False
        for sequence_hash in reused:
            self._use(sequence_hash)
        self._private += private
        self._evict()
        return True

    def share(self, sequence_hashes: Sequence[int], parent: int | None) -> None:
        """Private blocks have become full: from now on they are found under these hashes.

        One that is present already, made by another sequence, is used instead and the private one is free again.
        """
        new: list[int] = []
        for sequence_hash in sequence_hashes:
            if not self._use(sequence_hash):
                self._users[sequence_hash] = 1
                new.append(sequence_hash)
            elif new:  # a block is never present without those before it
                raise AssertionError(f"block {sequence_hash} is in the cache but the one before it was not")
            else:
                parent = sequence_hash
        self._private -= len(sequence_hashes)
        if new and self.observer is not None:
            self.observer.stored(new, parent)

    def release(self, private: int, shared: Sequence[int] = ()) -> None:
        """Gives back a sequence's private blocks and its shared ones, which are in the order of the sequence."""
        self._private -= private
        for sequence_hash in reversed(shared):
            users = self._users[sequence_hash] - 1
            if users:
                self._users[sequence_hash] = users
            else:
                del self._users[sequence_hash]
                self._cached[sequence_hash] = None

    def _use(self, sequence_hash: int) -> bool:
        """Adds a user to a block; False when it is not present."""
        users = self._users.get(sequence_hash)
        if users is not None:
            self._users[sequence_hash] = users + 1
            return True
        if sequence_hash in self._cached:
            del self._cached[sequence_hash]
            self._users[sequence_hash] = 1
            return True
        return False

    def _evict(self) -> None:
        """Drops the oldest cached blocks until there is room for all that are used."""
        surplus = self.used + self.cached - self.num_blocks
        if surplus > 0:
            evicted = [self._cached.popitem(last=False)[0] for _ in range(surplus)]
            if self.observer is not None:
                self.observer.removed(evicted)
