"""For tests of engines: hears of their KV cache."""

from dynamo.protocols.kv_events import KvEventBatch


class KvEventLog:
    """A KvEventSink that remembers what it is told."""

    def __init__(self) -> None:
        self.batches: list[KvEventBatch] = []
        self.closed = False

    def publish(self, batch: KvEventBatch) -> None:
        self.batches.append(batch)

    def close(self) -> None:
        self.closed = True
