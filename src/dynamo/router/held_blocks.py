"""What a worker holds in its KV cache, as far as it has said so: what it tells those who come late. Pure."""

from collections.abc import Iterator

from dynamo.protocols.kv_events import AllBlocksCleared, BlockStored, KvEventBatch, Tier
from dynamo.tokens import HashArray, hash_array, hashes_from_bytes, hashes_to_bytes

PART_BLOCKS = 8192  # 64 KiB of hashes, a fraction of what a stream may have under way


class HeldBlocks:
    """The blocks of one instance by data-parallel rank and tier. The engine bounds it: what it evicts it says."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, Tier], set[int]] = {}

    def __len__(self) -> int:
        """Blocks; one on two tiers, or two ranks, counts twice."""
        return sum(map(len, self._held.values()))

    def apply(self, batch: KvEventBatch) -> None:
        """Raises ValueError for an event whose hashes are no hashes."""
        for event in batch.events:
            if isinstance(event, AllBlocksCleared):
                self._clear(batch.dp_rank)
                continue
            hashes = hashes_from_bytes(event.hashes)
            held = self._held.setdefault((batch.dp_rank, event.tier), set())
            if isinstance(event, BlockStored):
                held.update(hashes)
            else:
                held.difference_update(hashes)

    def dump(self, part_blocks: int = PART_BLOCKS) -> Iterator[KvEventBatch]:
        """The state of this moment, however late its parts are taken; at most `part_blocks` blocks in each."""
        snapshot = [(place, hash_array(held)) for place, held in self._held.items() if held]
        return _parts(snapshot, part_blocks)

    def _clear(self, dp_rank: int) -> None:
        for tier in Tier:
            self._held.pop((dp_rank, tier), None)


def _parts(snapshot: list[tuple[tuple[int, Tier], HashArray]], part_blocks: int) -> Iterator[KvEventBatch]:
    for (dp_rank, tier), hashes in snapshot:
        for start in range(0, len(hashes), part_blocks):
            part = hashes_to_bytes(hashes[start : start + part_blocks])
            yield KvEventBatch(dp_rank, [BlockStored(part, tier)])
