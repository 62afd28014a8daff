"""Transfers of real bytes: so that the path on which real engines' KV caches travel can be tried under load."""

import time

from dynamo.engines.mocker.handoff import Begin, Grant
from dynamo.engines.mocker.kv_arena import KvArena
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.errors import InternalError
from dynamo.tokens import chain_hashes, local_block_hashes
from dynamo.transfer import Agent, Blocks
from dynamo.transfer.threads import Threads


class RealTransport:
    """A KvTransport. What stands in a block follows from its name, so the receiver can tell whether it is right."""

    def __init__(self, agent: Agent, *, num_blocks: int, block_size: int, bytes_per_token: int) -> None:
        """`block_size`: in tokens."""
        self._agent = agent
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._block_bytes = block_size * bytes_per_token
        self._prepared: dict[SequenceState, list[int]] = {}  # the names of its blocks
        # One thread: a slot that was released while it was being filled is filled again only after that.
        self._thread = Threads(1, f"{agent.name}-blocks")

    @property
    def notices_loss(self) -> bool:
        return True

    def start(self) -> None:
        """Raises OverloadedError when there is not so much memory."""
        self._arena = KvArena(self._agent.allocate(self._num_blocks * self._block_bytes), self._block_bytes)

    async def close(self) -> None:
        await self._thread.close()

    async def prepare(self, sequence: SequenceState) -> None:
        names = self._prepared[sequence] = block_names(sequence, self._block_size)
        new = self._arena.take_named(names)
        # Also with nothing to fill: somebody else may have begun to fill them, and not be done.
        await self._thread.run(self._arena.write, self._arena.slots(new), new)

    def grant(self, sequence: SequenceState, begin: Begin, lease_s: float) -> Grant:
        names = self._prepared[sequence][begin.first_block :][: begin.blocks]
        return Grant(lease_s=lease_s, blocks=self._arena.blocks(self._arena.slots(names)).encode())

    def release(self, sequence: SequenceState) -> None:
        names = self._prepared.pop(sequence, None)
        if names is not None:
            self._arena.give_named(names)

    async def fetch(self, sequence: SequenceState, begin: Begin, grant: Grant, deadline_s: float) -> int:
        remote = Blocks.decode(grant.blocks)
        slots = self._arena.take(begin.blocks)
        try:
            own = self._arena.blocks(slots)
            await self._agent.read(own, remote, timeout_s=deadline_s - time.monotonic())
            names = block_names(sequence, self._block_size)[begin.first_block :][: begin.blocks]
            wrong = await self._thread.run(self._arena.consume, slots, names)
        finally:
            self._arena.give(slots)
        if wrong:
            raise InternalError(f"{wrong} of {begin.blocks} KV blocks hold something else than they should")
        return own.size_bytes


def block_names(sequence: SequenceState, block_size: int) -> list[int]:
    """The sequence hashes of the prompt's blocks. One that is not full has that of the tokens that it does hold."""
    full_blocks, rest = divmod(len(sequence.prompt), block_size)
    names = list(sequence.hashes(full_blocks, block_size))
    if rest:
        tail = local_block_hashes(sequence.prompt[-rest:], rest, sequence.seed)
        names += chain_hashes(tail, names[-1] if names else None)
    return names
