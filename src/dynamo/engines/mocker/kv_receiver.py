"""The decode worker's side of a handoff: it asks the holder, fetches, and says that it has done."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

import msgspec

from dynamo.engines.mocker.handoff import Begin, End, Grant, HandoffParams, Question
from dynamo.engines.mocker.holders import Holders
from dynamo.engines.mocker.kv_transport import KvTransport
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.errors import (
    ConnectionLostError,
    DynamoError,
    HandoffLostError,
    InternalError,
    RequestCancelledError,
)
from dynamo.runtime.background import in_background
from dynamo.telemetry.kv_transfer_metrics import KvTransferMetrics
from dynamo.transfer import Agent

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 5.0
_END_DELAY_S = 0.01
_FAREWELL_S = 1.0  # how long close() waits for holders to hear of ends

Ended = Callable[[SequenceState, DynamoError | None], None]


class KvReceiver:
    """A task for each transfer; its blocks are its own until it has ended."""

    def __init__(self, agent: Agent, transport: KvTransport, metrics: KvTransferMetrics, *, block_size: int) -> None:
        """`block_size`: in tokens."""
        self._agent = agent
        self._holders = Holders(agent)
        self._transport = transport
        self._metrics = metrics
        self._block_size = block_size
        self._receiving: dict[SequenceState, asyncio.Task[bool]] = {}
        self._over: dict[bytes, list[bytes]] = {}  # ids of handoffs, by their holders: to be told
        self._telling: asyncio.TimerHandle | None = None
        self._farewells: set[asyncio.Task[None]] = set()

    def begin(self, sequence: SequenceState, params: HandoffParams, tokens: int, ended: Ended) -> None:
        """Fetches the KV of the `tokens` that a sequence lacks.

        `ended` is called once, when nothing is written into its blocks any more: with None when all is there, and else
        with a HandoffLostError, an InternalError (what came was wrong) or, after cancel(), a RequestCancelledError.
        """
        task = asyncio.create_task(self._fetch(sequence, params, tokens), name="receive a prompt")
        self._receiving[sequence] = task
        task.add_done_callback(partial(self._ended, sequence, params, ended))  # is called in any case, unlike a finally

    def cancel(self, sequence: SequenceState) -> bool:
        """Whether something is being fetched for a sequence: it then ends early, which `ended` is told."""
        task = self._receiving.get(sequence)
        if task is None:
            return False
        _cancel_once(task)
        return True

    def end(self, params: HandoffParams) -> None:
        """Tells the holder that nobody needs a prompt any more. If it does not hear it, its lease will tell.

        It is told a moment later, of all that are over by then: the first token, which is due now, has no use for a
        holder that is busy at the same time.
        """
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_END_DELAY_S, self._tell_ends)
        self._over.setdefault(params.agent, []).append(params.id)

    async def until_idle(self) -> None:
        """Returns when nothing is fetched."""
        while self._receiving:
            await asyncio.wait(self._receiving.values())

    async def close(self) -> None:
        """Returns when nothing is fetched any more."""
        for task in self._receiving.values():
            _cancel_once(task)
        if self._receiving:
            await asyncio.wait(self._receiving.values())
        if self._telling is not None:
            self._telling.cancel()
            self._tell_ends()
        if self._farewells:
            _, late = await asyncio.wait(self._farewells, timeout=_FAREWELL_S)
            for farewell in late:
                farewell.cancel()

    def _ended(self, sequence: SequenceState, params: HandoffParams, ended: Ended, task: asyncio.Task[bool]) -> None:
        del self._receiving[sequence]
        error = _error_of(task)
        self._metrics.ended["ok" if error is None else error.code] += 1
        ended(sequence, error)
        if error is not None or not task.result():
            self.end(params)

    async def _fetch(self, sequence: SequenceState, params: HandoffParams, tokens: int) -> bool:
        """Returns when all is there: whether the holder knows it."""
        began_s = time.monotonic()
        first_block = sequence.computed // self._block_size
        end_block = -(-(sequence.computed + tokens) // self._block_size)
        begin = Begin(id=params.id, tokens=tokens, first_block=first_block, blocks=end_block - first_block)
        with self._holders.using(params.agent) as holder:
            grant = msgspec.msgpack.decode(await self._ask(holder, begin), type=Grant)
            size_bytes = await self._transport.fetch(sequence, begin, grant, began_s + grant.lease_s)
            told = not self._transport.notices_loss
            if told:
                await self._ask(holder, End(ids=[params.id]))  # if it is gone, it has not sent all
        self._metrics.tokens += tokens
        self._metrics.size_bytes += size_bytes
        self._metrics.duration.observe(time.monotonic() - began_s)
        return told

    def _tell_ends(self) -> None:
        over, self._over, self._telling = self._over, {}, None
        for agent, ids in over.items():
            task = in_background(self._tell_end(agent, ids), "tell the end of handoffs")
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    async def _tell_end(self, agent: bytes, ids: list[bytes]) -> None:
        try:
            with self._holders.using(agent) as holder:
                await self._ask(holder, End(ids=ids))
        except DynamoError as error:
            logger.debug("a holder has not heard that its prompts are not needed any more: %s", error)

    async def _ask(self, holder: str, question: Question) -> bytes:
        try:
            return await self._agent.ask(holder, msgspec.msgpack.encode(question), timeout_s=ANSWER_TIMEOUT_S)
        except ConnectionLostError:
            self._agent.remove_peer(holder)  # it will not come back under this name
            raise
        except InternalError as error:
            raise HandoffLostError(f"the holder has failed: {error}") from error


def _cancel_once(task: asyncio.Task[bool]) -> None:
    """A second time would be felt by the first one's waiting for the transfer to stop."""
    if not task.cancelling():
        task.cancel()


def _error_of(task: asyncio.Task[bool]) -> DynamoError | None:
    """What a sequence whose transfer has ended so is to be told."""
    if task.cancelled():
        return RequestCancelledError("the request was given up while its prompt came")
    error = task.exception()
    if error is None or isinstance(error, HandoffLostError | InternalError):
        return error
    if isinstance(error, DynamoError):
        return HandoffLostError(f"the prompt's KV cache could not be fetched: {error}")
    logger.error("a transfer has ended by a defect", exc_info=error)
    return InternalError(f"the prompt's KV cache could not be fetched: {error!r}")
