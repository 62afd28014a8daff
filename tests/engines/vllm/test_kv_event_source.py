"""The sockets on which vLLM publishes its KV events, with a publisher that does as the test says."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from dynamo.engines.vllm.kv_events import KvEventTranslator
from dynamo.protocols.kv_events import AllBlocksCleared, BlockStored, KvEventBatch
from dynamo.telemetry.kv_event_metrics import KvEventFigures
from dynamo.testing import eventually, within
from dynamo.testing.waiting import DEADLINE_S
from dynamo.tokens import hashes_from_bytes, sequence_hashes, token_array

if TYPE_CHECKING:
    from dynamo.engines.vllm.kv_event_source import KvEventSource

pytestmark = pytest.mark.vllm  # for pyzmq, which comes with it
zmq: Any = pytest.importorskip("zmq")
zmq_asyncio: Any = pytest.importorskip("zmq.asyncio")


def payload(number: int) -> bytes:
    """Event `number` stores one block, of four times that token."""
    event = {"type": "BlockStored", "block_hashes": [number], "token_ids": [number] * 4, "block_size": 4}
    return msgspec.msgpack.encode([0.0, [event], 0])


NUMBERS = {sequence_hashes(token_array([number] * 4), 4)[0]: number for number in range(3000)}


class Publisher:
    """Like vLLM's: a PUB socket, and a ROUTER that repeats what is kept."""

    def __init__(self, context: Any, directory: Path) -> None:
        self.endpoint = f"ipc://{directory}/events"
        self.replay_endpoint: str | None = f"ipc://{directory}/replay"
        self.kept: dict[int, bytes] = {}
        self.asked: list[int] = []  # first events of which a repetition was asked for
        self.holes: list[int] = []  # what the next answer leaves out
        self._pub, self._router = context.socket(zmq.XPUB), context.socket(zmq.ROUTER)
        self._pub.bind(self.endpoint)
        self._router.bind(self.replay_endpoint)

    async def subscribed(self) -> None:
        await within(self._pub.recv())

    async def send(self, *numbers: int) -> None:
        for number in numbers:
            self.kept[number] = payload(number)
            await self._pub.send_multipart([b"", number.to_bytes(8, "big"), self.kept[number]])

    def lose(self, *numbers: int) -> None:
        """Published, but not heard."""
        self.kept.update((number, payload(number)) for number in numbers)

    async def repeat(self) -> None:
        while True:
            peer, _, encoded = await self._router.recv_multipart()
            first = int.from_bytes(encoded, "big")
            self.asked.append(first)
            holes, self.holes = self.holes, []
            for number, event in sorted(self.kept.items()):
                if number >= first and number not in holes:
                    await self._router.send_multipart([peer, b"", b"", number.to_bytes(8, "big"), event])
            await self._router.send_multipart([peer, b"", b"", (-1).to_bytes(8, "big", signed=True), b""])


class Heard:
    """What has been published onwards: numbers, and "cleared"."""

    def __init__(self) -> None:
        self.log: list[int | str] = []

    def publish(self, batch: KvEventBatch) -> None:
        for event in batch.events:
            if isinstance(event, AllBlocksCleared):
                self.log.append("cleared")
            else:
                assert isinstance(event, BlockStored)
                self.log += [NUMBERS[block] for block in hashes_from_bytes(event.hashes)]

    async def until(self, *expected: int | str) -> None:
        await eventually(lambda: len(self.log) >= len(expected))
        assert self.log == list(expected)


@pytest.fixture
async def context() -> AsyncIterator[Any]:
    context = zmq_asyncio.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
async def vllm(context: Any, tmp_path: Path) -> AsyncIterator[Publisher]:
    publisher = Publisher(context, tmp_path)
    repeating = asyncio.create_task(publisher.repeat())
    yield publisher
    repeating.cancel()
    await asyncio.wait([repeating])


@pytest.fixture
def heard() -> Heard:
    return Heard()


@contextlib.asynccontextmanager
async def listening(
    vllm: Publisher, context: Any, heard: Heard, *, answers: bool = True
) -> "AsyncIterator[KvEventSource]":
    """A source that has subscribed and, where it gets an answer, asked for what was before."""
    from dynamo.engines.vllm.kv_event_source import KvEventSource

    source = KvEventSource(
        context,
        KvEventTranslator(0, 4),
        heard.publish,
        endpoint=vllm.endpoint,
        replay_endpoint=vllm.replay_endpoint,
        replay_timeout_s=DEADLINE_S if answers else 0.02,
    )
    running = asyncio.create_task(source.run())
    try:
        await vllm.subscribed()
        if answers:
            await eventually(lambda: bool(vllm.asked))
        yield source
    finally:
        running.cancel()
        await asyncio.wait([running])
        source.close()


async def test_events_in_order(vllm: Publisher, context: Any, heard: Heard) -> None:
    async with listening(vllm, context, heard) as source:
        await vllm.send(0, 1, 2)
        await heard.until(0, 1, 2)
        assert (vllm.asked, source.figures().gaps) == ([0], 0)


async def test_what_was_published_before(vllm: Publisher, context: Any, heard: Heard) -> None:
    vllm.lose(0, 1)
    async with listening(vllm, context, heard) as source:
        await vllm.send(2)
        await heard.until(0, 1, 2)
        assert (vllm.asked, source.figures().gaps) == ([0], 0)


async def test_gap_is_filled(vllm: Publisher, context: Any, heard: Heard) -> None:
    async with listening(vllm, context, heard) as source:
        await vllm.send(0)
        vllm.lose(1, 2)
        await vllm.send(3, 4)
        await heard.until(0, 1, 2, 3, 4)
        assert (vllm.asked, source.figures().gaps) == ([0, 1], 0)


async def test_event_that_comes_twice(vllm: Publisher, context: Any, heard: Heard) -> None:
    async with listening(vllm, context, heard):
        await vllm.send(0, 1, 0, 1, 2)
        await heard.until(0, 1, 2)


async def test_repetition_with_a_hole(vllm: Publisher, context: Any, heard: Heard) -> None:
    """Something was lost on the way: it is asked for again."""
    async with listening(vllm, context, heard) as source:
        vllm.lose(*range(5))
        vllm.holes = [2, 3]
        await vllm.send(5)
        await heard.until(0, 1, 2, 3, 4, 5)
        assert (vllm.asked, source.figures().gaps) == ([0, 0, 2], 0)


async def test_gap_that_cannot_be_filled(
    vllm: Publisher, context: Any, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    """Routers are told to forget: what has gone is not known."""
    caplog.set_level(logging.INFO, "dynamo")
    async with listening(vllm, context, heard) as source:
        await vllm.send(0)
        vllm.lose(4, 5)
        await vllm.send(6)
        await heard.until(0, "cleared", 4, 5, 6)
        assert source.figures().gaps == 1
        assert "KV events 1 to 3 are lost" in caplog.text
    assert "were lost: 1 sequences; could not be read: 0; could not be named: 0 blocks" in caplog.text


async def test_vllm_that_has_forgotten_its_beginning(vllm: Publisher, context: Any, heard: Heard) -> None:
    vllm.lose(7)
    async with listening(vllm, context, heard):
        await heard.until("cleared", 7)


async def test_gap_without_a_way_to_ask(vllm: Publisher, context: Any, heard: Heard) -> None:
    vllm.replay_endpoint = None
    async with listening(vllm, context, heard, answers=False) as source:
        await vllm.send(0, 2, 3)
        await heard.until(0, "cleared", 2, 3)
        assert source.figures().gaps == 1


async def test_vllm_that_does_not_answer(vllm: Publisher, context: Any, heard: Heard) -> None:
    vllm.replay_endpoint = "ipc:///nowhere"
    async with listening(vllm, context, heard, answers=False) as source:
        await vllm.send(5)
        await heard.until("cleared", 5)
        assert source.figures().gaps == 1


async def test_many_at_once(vllm: Publisher, context: Any, heard: Heard) -> None:
    """More than ZMQ's sockets hold by default."""
    vllm.lose(*range(2500))
    async with listening(vllm, context, heard):
        await vllm.send(*range(2500, 3000))
        await heard.until(*range(3000))


async def test_message_of_another_kind(vllm: Publisher, context: Any, heard: Heard) -> None:
    async with listening(vllm, context, heard) as source:
        await vllm._pub.send_multipart([b"", b"hello"])
        await vllm.send(0)
        await heard.until(0)
        assert source.figures().malformed == 1


async def test_figures(vllm: Publisher, context: Any, heard: Heard) -> None:
    async with listening(vllm, context, heard) as source:
        await vllm.send(0)
        vllm.lose(3)
        vllm.kept[4] = b"not msgpack"
        unnamed = {"type": "BlockStored", "block_hashes": [1, 2]}  # no tokens, and nothing is known of them
        vllm.kept[5] = msgspec.msgpack.encode([0.0, [unnamed], 0])
        await vllm.send(6)
        await heard.until(0, "cleared", 3, 6)
        assert source.figures() == KvEventFigures(messages=5, replays=2, gaps=1, malformed=1, unnamed_blocks=2)
