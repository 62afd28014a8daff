"""Which instances of an endpoint a router may send requests to: those whose model is the one that it is for."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from dynamo.llm.register import ModelEntry, apply_announcement, models_prefix
from dynamo.protocols.model_card import ModelCard, RuntimeLimits
from dynamo.runtime.background import in_background
from dynamo.runtime.client import Client
from dynamo.runtime.component import Endpoint
from dynamo.runtime.discovery.base import Event

logger = logging.getLogger(__name__)


class FittingWorkers:
    """Follows the instances of an endpoint and what they announce, until close().

    An instance that announces no model fits where any model does.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        client: Client,
        on_change: Callable[[Mapping[int, RuntimeLimits]], None],
        *,
        block_size: int,
        model: str,
        content_hash: str,
    ) -> None:
        """`client` of `endpoint`; it stays the caller's to close.

        `on_change` is told, by instance, what those that fit were started with; for the first time in refresh(). A
        model fits that has KV blocks of `block_size` tokens and, where they are not empty, this name and this
        `content_hash`.
        """
        self._client = client
        self._on_change = on_change
        self._block_size = block_size
        self._model = model
        self._content_hash = content_hash
        self._announced: dict[str, ModelEntry] = {}  # by discovery key
        self._limits: dict[int, RuntimeLimits] = {}  # of the instances that fit
        self._refused: set[int] = set()
        self._instances: list[int] = []  # that the two were made of
        self._stale = True  # there are entries that they were not made of
        self.outlived = False  # nobody fits, but others of the model are there
        self._entries = endpoint.runtime.discovery.watch(announcements(endpoint))
        for event in self._entries.take():  # who is there can be chosen at once
            self._apply(event)
        self._followers = [
            in_background(self._follow_entries(), f"kv-router-entries-{endpoint}"),
            in_background(self._follow_instances(), f"kv-router-instances-{endpoint}"),
        ]

    def __contains__(self, instance_id: int) -> bool:
        return instance_id in self._limits

    async def close(self) -> None:
        for follower in self._followers:
            follower.cancel()
        await asyncio.wait(self._followers)
        self._entries.close()

    def refresh(self) -> None:
        """Takes in what discovery has heard up to this moment."""
        instances = self._client.instance_ids()
        if instances == self._instances and not self._stale:
            return
        self._instances, self._stale = instances, False
        cards_of: dict[int, list[ModelCard]] = {}
        for entry in self._announced.values():
            cards_of.setdefault(entry.instance_id, []).append(entry.card)
        limits: dict[int, RuntimeLimits] = {}
        refused: set[int] = set()
        for instance_id in instances:
            cards = cards_of.get(instance_id, [])
            if (fitting := self._fitting(cards)) is not None:
                limits[instance_id] = fitting
            elif cards:
                refused.add(instance_id)
                self._complain(instance_id, cards[0])
        self._refused, self._limits = refused, limits
        self.outlived = not limits and any(self._is_other(card) for i in refused for card in cards_of[i])
        self._on_change(limits)

    async def _follow_entries(self) -> None:
        async for event in self._entries:
            self._apply(event)
            self.refresh()

    async def _follow_instances(self) -> None:
        while True:
            self.refresh()
            await self._client.wait_for_change()

    def _apply(self, event: Event) -> None:
        apply_announcement(self._announced, event)
        self._stale = True

    def _fitting(self, cards: list[ModelCard]) -> RuntimeLimits | None:
        """What an instance that announces these was started with, if it fits."""
        if not cards and not self._model:
            return RuntimeLimits()
        return next((card.limits for card in cards if self._fits(card)), None)

    def _fits(self, card: ModelCard) -> bool:
        return (
            self._model in ("", card.name)
            and self._content_hash in ("", card.content_hash)
            and card.limits.kv_block_size == self._block_size
        )

    def _is_other(self, card: ModelCard) -> bool:
        """Whether a router for this card's workers could be made instead."""
        return self._model in ("", card.name) and card.limits.kv_block_size is not None

    def _complain(self, instance_id: int, card: ModelCard) -> None:
        if instance_id in self._refused:
            return
        size = card.limits.kv_block_size
        other_files = card.name == self._model and self._content_hash not in ("", card.content_hash)
        logger.warning(
            "instance %x gets no requests: it serves %r with %s%s, this router is for %s with KV blocks of %d tokens",
            instance_id,
            card.name,
            "KV blocks of unknown size" if size is None else f"KV blocks of {size} tokens",
            " and other model files or another context length" if other_files else "",
            repr(self._model) if self._model else "any model",
            self._block_size,
        )


def announcements(endpoint: Endpoint) -> str:
    """Where in discovery the instances of an endpoint announce their models."""
    return f"{models_prefix(endpoint.id.namespace)}{endpoint.id}/"
