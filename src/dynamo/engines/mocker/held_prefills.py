"""The prompts that a worker has prefilled for others, until they have them."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from dynamo.engines.mocker.handoff import Begin, Grant, HandoffParams, decode_question
from dynamo.engines.mocker.kv_transport import KvTransport
from dynamo.engines.mocker.scheduler import Scheduler
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.errors import HandoffLostError
from dynamo.protocols.disagg import Handoff
from dynamo.telemetry.kv_transfer_metrics import KvTransferMetrics
from dynamo.transfer import Notification

logger = logging.getLogger(__name__)

_UNASKED_LEASES = 10  # for which is kept what nobody comes for
_BEGUN_LEASES = 2


@dataclass(slots=True, kw_only=True)
class _Held:
    sequence: SequenceState
    expiry: asyncio.TimerHandle
    over: asyncio.Event = field(default_factory=asyncio.Event)  # nobody will come for it
    begun: bool = False  # somebody fetches it


class HeldPrefills:
    """Each is fetched once. Until somebody comes for it, it is kept as long as its request lives: until give_up().

    Who wants to fetch asks first, and is granted the time of a lease from its question on. So that nobody ever reads
    what is another prompt's by then, what was begun is kept for twice that time, unless its end is told. A decode
    worker's queue may be long; for a frontend that hangs, what nobody comes for is kept for ten times that time.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        transport: KvTransport,
        released: Callable[[], None],
        metrics: KvTransferMetrics,
        *,
        lease_s: float,
    ) -> None:
        """`released` is called whenever the scheduler may have got room."""
        self._scheduler = scheduler
        self._transport = transport
        self._released = released
        self._metrics = metrics
        self._lease_s = lease_s
        self._held: dict[bytes, _Held] = {}
        self._ids: dict[SequenceState, bytes] = {}
        self._none = asyncio.Event()  # are held
        self._none.set()

    async def hold(self, sequence: SequenceState, agent: bytes) -> Handoff:
        """How others get at a prompt whose prefill has ended. `agent`: this worker's metadata."""
        await self._transport.prepare(sequence)
        params = HandoffParams(agent, secrets.token_bytes(16))
        self._held[params.id] = _Held(
            sequence=sequence, expiry=self._expiry(params.id, _UNASKED_LEASES * self._lease_s)
        )
        self._ids[sequence] = params.id
        self._none.clear()
        self._metrics.held += 1
        return params.handoff()

    async def over(self, sequence: SequenceState) -> None:
        """Returns when it is not held any more, or was given up."""
        held = self._find(sequence)
        if held is not None:
            await held.over.wait()

    async def until_none(self) -> None:
        """Returns when nothing is held: all was fetched or given up, or its time is up."""
        await self._none.wait()

    def give_up(self, sequence: SequenceState) -> None:
        """Nobody passes its handoff on any more: frees it, unless somebody has begun to fetch it. Idempotent."""
        held = self._find(sequence)
        if held is not None and held.begun:
            held.over.set()
        else:
            self.release(sequence)

    def release(self, sequence: SequenceState) -> None:
        """Nobody needs it any more. Idempotent."""
        handoff_id = self._ids.pop(sequence, None)
        if handoff_id is not None:
            held = self._held.pop(handoff_id)
            held.expiry.cancel()
            held.over.set()
            self._metrics.held -= 1
            if not self._ids:
                self._none.set()
        self._transport.release(sequence)
        self._scheduler.release(sequence)
        self._released()

    async def answer(self, question: Notification) -> bytes:
        """What decode workers ask: see handoff.py. Raises HandoffLostError for what is not, or no more, to be had."""
        asked = decode_question(question.payload)
        if isinstance(asked, Begin):
            held = self._held.get(asked.id)
            if held is None or held.begun:
                raise HandoffLostError("the prompt's KV cache is not held any more")
            return msgspec.msgpack.encode(self._begin(held, asked))
        for handoff_id in asked.ids:
            if (over := self._held.get(handoff_id)) is not None:
                self.release(over.sequence)
        return b""

    def close(self) -> None:
        """Nothing is held any more."""
        for sequence in tuple(self._ids):
            self.release(sequence)

    def _find(self, sequence: SequenceState) -> _Held | None:
        handoff_id = self._ids.get(sequence)
        return None if handoff_id is None else self._held[handoff_id]

    def _begin(self, held: _Held, begin: Begin) -> Grant:
        tokens = len(held.sequence.prompt)
        blocks = -(-tokens // self._scheduler.config.block_size)
        if not (0 <= begin.tokens <= tokens and 0 <= begin.first_block <= begin.first_block + begin.blocks <= blocks):
            raise HandoffLostError(f"a prompt of {tokens} tokens is held under this name, which has no such part")
        held.begun = True
        held.expiry.cancel()
        held.expiry = self._expiry(begin.id, _BEGUN_LEASES * self._lease_s)
        return self._transport.grant(held.sequence, begin, self._lease_s)

    def _expiry(self, handoff_id: bytes, after_s: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(after_s, self._expire, handoff_id)

    def _expire(self, handoff_id: bytes) -> None:
        held = self._held[handoff_id]
        what = "has said that it has fetched" if held.begun else "has come for"
        logger.warning("nobody %s a prompt of %d tokens: its blocks are freed", what, len(held.sequence.prompt))
        self._metrics.expired += 1
        self.release(held.sequence)
