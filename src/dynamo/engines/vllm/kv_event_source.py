"""The ZMQ sockets on which vLLM publishes its KV events.

Events come on a SUB socket as [topic, number, payload]. A subscriber that has missed some, because it came late or was
slow, asks another socket to repeat those from a number on; vLLM keeps the latest ten thousand.
"""

import asyncio
import logging
from collections.abc import Callable

import zmq
import zmq.asyncio

from dynamo.engines.vllm.kv_events import KvEventTranslator
from dynamo.protocols.kv_events import KvEventBatch
from dynamo.telemetry.kv_event_metrics import KvEventFigures

logger = logging.getLogger(__name__)

_REPLAY_TIMEOUT_S = 5.0
_REPLAY_ATTEMPTS = 3
_REPLAY_MESSAGES_MAX = 20_000  # twice what vLLM keeps
_NUMBER_BYTES = 8  # big-endian


class KvEventSource:
    """The events of one data-parallel rank, in order and without gaps."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        translator: KvEventTranslator,
        publish: Callable[[KvEventBatch], None],
        *,
        endpoint: str,
        replay_endpoint: str | None,
        topic: str = "",
        replay_timeout_s: float = _REPLAY_TIMEOUT_S,
    ) -> None:
        """`replay_timeout_s`: how long vLLM may be silent when it repeats."""
        self._messages = 0
        self._replays = 0
        self._gaps = 0  # that could not be filled
        self._foreign = 0  # messages that are no KV events
        self._context = context
        self._translator = translator
        self._publish = publish
        self._replay_endpoint = replay_endpoint
        self._replay_timeout_s = replay_timeout_s
        self._next = 0  # the number of the event that continues what is known
        self._socket = context.socket(zmq.SUB)
        self._socket.subscribe(topic)
        self._socket.connect(endpoint)

    async def run(self) -> None:
        """Publishes until it is cancelled; what vLLM has published before counts too."""
        await self._replay()
        while True:
            message = await self._socket.recv_multipart()
            if len(message) != 3 or len(message[1]) != _NUMBER_BYTES:
                self._foreign += 1
                logger.warning("ignoring a message that is no KV event of vLLM's")
                continue
            _, number, payload = message
            await self._take(int.from_bytes(number, "big"), payload)

    def figures(self) -> KvEventFigures:
        """What has become of the events so far."""
        return KvEventFigures(
            messages=self._messages,
            replays=self._replays,
            gaps=self._gaps,
            malformed=self._foreign + self._translator.malformed,
            unnamed_blocks=self._translator.names.unnamed,
        )

    def close(self) -> None:
        figures = self.figures()
        if figures.gaps or figures.malformed or figures.unnamed_blocks:
            logger.info(
                "of vLLM's KV events were lost: %d sequences; could not be read: %d; could not be named: %d blocks",
                figures.gaps,
                figures.malformed,
                figures.unnamed_blocks,
            )
        self._socket.close(linger=0)

    async def _take(self, number: int, payload: bytes) -> None:
        if number > self._next:
            await self._replay()
        if number > self._next:
            self._give_up(number)
        if number == self._next:  # else known already
            self._apply(number, payload)

    async def _replay(self) -> None:
        """Asks for everything from the next event on, and takes what comes; again if something was lost on the way."""
        for _ in range(_REPLAY_ATTEMPTS):
            if self._replay_endpoint is None or await self._ask(self._replay_endpoint):
                return
        logger.warning("vLLM does not repeat its KV events")

    async def _ask(self, endpoint: str) -> bool:
        """Whether the answer was complete."""
        self._replays += 1
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.set_hwm(_REPLAY_MESSAGES_MAX)  # vLLM drops what does not fit
            socket.connect(endpoint)
            await socket.send_multipart([b"", self._next.to_bytes(_NUMBER_BYTES, "big")])
            return await self._take_replay(socket)
        except TimeoutError:
            return False
        finally:
            socket.close(linger=0)

    async def _take_replay(self, socket: zmq.asyncio.Socket) -> bool:
        first = True
        while True:
            async with asyncio.timeout(self._replay_timeout_s):
                message = await socket.recv_multipart()
            if len(message) != 4 or not message[3]:  # the end
                return len(message) == 4
            number, payload = int.from_bytes(message[2], "big"), message[3]
            if number > self._next:
                if not first:
                    return False
                self._give_up(number)  # vLLM no longer has those before
            if number == self._next:
                self._apply(number, payload)
            first = False

    def _apply(self, number: int, payload: bytes) -> None:
        self._next = number + 1
        self._messages += 1
        self._publish(self._translator.translate(payload))

    def _give_up(self, number: int) -> None:
        """Events before `number` are lost for good. What is held may have gone with them: better to know nothing."""
        self._gaps += 1
        logger.warning(
            "vLLM's KV events %d to %d are lost: routers forget what this worker holds", self._next, number - 1
        )
        self._next = number
        self._publish(self._translator.clear())
