"""Workers that do the same for one model name, and which of them do it together."""

import logging
from collections import Counter
from collections.abc import Iterable

from dynamo.llm.register import ModelEntry
from dynamo.runtime.instance import EndpointId

logger = logging.getLogger(__name__)


class WorkerGroup:
    """Workers whose cards differ cannot stand in for each other: most of them are taken (if equally many: the oldest).

    The others get no requests. The choice depends on nothing but who is there, so that all frontends choose alike.
    """

    def __init__(self, *, same_blocks: bool) -> None:
        """`same_blocks`: workers whose KV blocks differ in size cannot stand in for each other either."""
        self._same_blocks = same_blocks
        self._entries: dict[str, ModelEntry] = {}  # by discovery key
        self._left_out: set[str] = set()  # keys that were complained about
        self._like: ModelEntry | None = None  # as in elect()
        self.chosen: ModelEntry | None = None  # one of the members, or of those that were the last ones

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, key: str, entry: ModelEntry) -> None:
        self._entries[key] = entry

    def remove(self, key: str) -> None:
        self._entries.pop(key, None)

    def elect(self, like: ModelEntry | None = None) -> bool:
        """Chooses, among those that can hand over to `like`; True where others than before are members now.

        Says once of each worker that is left out why it is.
        """
        self._like = like
        eligible = list(filter(self._is_eligible, self._entries.values()))
        before = self.chosen
        if eligible:
            sizes = Counter(map(self._kind, eligible))
            self.chosen = min(eligible, key=lambda e: (-sizes[self._kind(e)], e.announced_ms, e.instance_id))
        elif self._entries and like is not None:
            self.chosen = None
        self._complain(self.chosen or like)
        return self.chosen is not None and (before is None or self._kind(before) != self._kind(self.chosen))

    def members(self) -> list[ModelEntry]:
        """Those that serve; one entry of each instance."""
        chosen = self.chosen
        if chosen is None:
            return []
        kind = self._kind(chosen)
        members = (e for e in self._entries.values() if self._kind(e) == kind and self._is_eligible(e))
        return list({e.instance_id: e for e in members}.values())

    def _is_eligible(self, entry: ModelEntry) -> bool:
        return self._like is None or _can_hand_over(entry, self._like)

    def _kind(self, entry: ModelEntry) -> tuple[EndpointId, str, int | None]:
        """Equal for workers that can stand in for each other."""
        return entry.endpoint, entry.card.content_hash, entry.card.limits.kv_block_size if self._same_blocks else None

    def _complain(self, other: ModelEntry | None) -> None:
        members = {entry.instance_id for entry in self.members()}
        left_out = {key: entry for key, entry in self._entries.items() if entry.instance_id not in members}
        for key in left_out.keys() - self._left_out if other is not None else ():
            assert other is not None
            entry = left_out[key]
            logger.error(
                "instance %x gets no requests: it announces another model under the name %r than instance %x (%s)",
                entry.instance_id,
                entry.card.name,
                other.instance_id,
                "; ".join(_differences(entry, other)) or "another kind of model or engine",
            )
        self._left_out = set(left_out)


def _can_hand_over(entry: ModelEntry, other: ModelEntry) -> bool:
    """Whether it is the same model in the same deployment, and their engines understand each other, if they say how."""
    formats = {entry.card.handoff_format, other.card.handoff_format} - {""}
    return (
        entry.card.content_hash == other.card.content_hash
        and entry.endpoint.namespace == other.endpoint.namespace
        and len(formats) <= 1
    )


def _differences(entry: ModelEntry, other: ModelEntry) -> Iterable[str]:
    """For a person: what about `entry` is not as with `other`."""
    card, expected = entry.card, other.card
    if entry.endpoint != other.endpoint and card.worker_type == expected.worker_type:
        yield f"endpoint {entry.endpoint}, not {other.endpoint}"
    if entry.endpoint.namespace != other.endpoint.namespace:
        yield f"namespace {entry.endpoint.namespace}, not {other.endpoint.namespace}"
    if card.handoff_format != expected.handoff_format and "" not in (card.handoff_format, expected.handoff_format):
        yield f"KV caches handed over as {card.handoff_format}, not {expected.handoff_format}"
    if card.context_length != expected.context_length:
        yield f"context length {card.context_length}, not {expected.context_length}"
    if card.limits.kv_block_size != expected.limits.kv_block_size:
        sizes = card.limits.kv_block_size or "unknown", expected.limits.kv_block_size or "unknown"
        yield f"KV block size {sizes[0]}, not {sizes[1]}"
    if files := sorted({artifact.name for artifact in set(card.artifacts) ^ set(expected.artifacts)}):
        yield f"other {', '.join(files)}"
