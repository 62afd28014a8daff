"""Which worker holds which blocks, from what the workers say. Pure.

What a worker says is checked: an event that makes no sense is counted and dropped, and the log names the worker, once.
"""

import logging

import msgspec

from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import HASH_BYTES, AllBlocksCleared, BlockStored, KvEvent, KvEventBatch
from dynamo.router.radix_tree import MAX_BLOCKS, RadixTree
from dynamo.runtime.codec import PAYLOAD_ERRORS, payload_decoder

logger = logging.getLogger(__name__)

BATCH_BYTES_MAX = 16 << 20  # two million blocks: more than an engine's step can touch
RANKS_MAX = 1024  # per instance; each has a place in every block's set of holders


class KvIndexer:
    """A RadixTree that follows KvEventBatches. Instances need no announcement; one that is gone is to be forgotten."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self.tree = RadixTree(max_blocks)
        self.events = 0  # applied
        self.dumps = 0  # applied; what is in them is no event
        self.malformed = 0  # events, and batches that could not be read, that were dropped
        self._ranks: dict[int, set[int]] = {}  # by instance id
        self._dumped_ranks: dict[int, set[int]] = {}  # in what has come of a dump
        self._warned: set[int] = set()  # instances whose mistakes the log has had
        self._decode = payload_decoder(KvEventBatch)

    def apply(self, instance_id: int, batch: KvEventBatch) -> None:
        """What one engine step has changed."""
        worker = self._worker(instance_id, batch, self._ranks)
        if worker is None:
            return
        for event in batch.events:
            if (mistake := _mistake(event)) is None:
                self.tree.apply(worker, event)
                self.events += 1
            else:
                self._drop(instance_id, 1, mistake)

    def apply_payload(self, instance_id: int, payload: msgspec.Raw) -> None:
        """The same, as it has arrived."""
        batch = self._decoded(instance_id, payload)
        if batch is not None:
            self.apply(instance_id, batch)

    def add_part(self, instance_id: int, payload: msgspec.Raw) -> None:
        """The next part of a dump, a KvEventBatch; nothing of it is found before end_dump()."""
        batch = self._decoded(instance_id, payload)
        worker = self._worker(instance_id, batch, self._dumped_ranks) if batch is not None else None
        if batch is None or worker is None:
            return
        for event in batch.events:
            if not isinstance(event, BlockStored):
                self._drop(instance_id, 1, "a dump is of what is stored, not of changes")
            elif (mistake := _mistake(event)) is None:
                self.tree.draft(worker, event.hashes, event.tier)
            else:
                self._drop(instance_id, 1, mistake)

    def end_dump(self, instance_id: int) -> None:
        """The parts are all that the instance holds, on all its ranks."""
        ranks = self._dumped_ranks.pop(instance_id, set())
        for dp_rank in ranks | self._ranks.pop(instance_id, set()):
            self.tree.adopt(WorkerId(instance_id, dp_rank))
        self._ranks[instance_id] = ranks
        self.tree.clear_portion()
        self.dumps += 1

    def drop_dump(self, instance_id: int) -> None:
        """No more parts will come: those that have are void."""
        for dp_rank in self._dumped_ranks.pop(instance_id, ()):
            self.tree.drop_draft(WorkerId(instance_id, dp_rank))
        self.tree.clear_portion()

    def forget(self, instance_id: int) -> None:
        """The instance is gone."""
        self.drop_dump(instance_id)
        for dp_rank in self._ranks.pop(instance_id, ()):
            self.tree.remove_worker(WorkerId(instance_id, dp_rank))
        self._warned.discard(instance_id)

    def _worker(self, instance_id: int, batch: KvEventBatch, ranks: dict[int, set[int]]) -> WorkerId | None:
        """Whom the batch is about, noted among `ranks`; None where it can be about nobody."""
        if not 0 <= batch.dp_rank < RANKS_MAX:
            self._drop(instance_id, len(batch.events), f"there is no data-parallel rank {batch.dp_rank}")
            return None
        ranks.setdefault(instance_id, set()).add(batch.dp_rank)
        return WorkerId(instance_id, batch.dp_rank)

    def _decoded(self, instance_id: int, payload: msgspec.Raw) -> KvEventBatch | None:
        size_bytes = len(memoryview(payload))
        if size_bytes > BATCH_BYTES_MAX:
            self._drop(instance_id, 1, f"a batch of {size_bytes} bytes is too large")
            return None
        try:
            return self._decode(payload)  # type: ignore[no-any-return]
        except PAYLOAD_ERRORS as error:
            self._drop(instance_id, 1, f"a batch has the wrong shape: {error}")
            return None

    def _drop(self, instance_id: int, count: int, reason: str) -> None:
        self.malformed += count
        if instance_id not in self._warned:
            self._warned.add(instance_id)
            logger.warning("instance %x sends KV events that make no sense, they are dropped: %s", instance_id, reason)


def _mistake(event: KvEvent) -> str | None:
    """What is wrong with an event."""
    if isinstance(event, AllBlocksCleared):
        return None
    size_bytes = len(event.hashes)
    if size_bytes % HASH_BYTES:
        return f"{size_bytes} bytes are not a whole number of hashes"
    if size_bytes > BATCH_BYTES_MAX:
        return f"{size_bytes} bytes of hashes are too many"
    return None
