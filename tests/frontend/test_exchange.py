"""Streams on connections whose bytes are looked at, call by call."""

import asyncio
import gc
import logging
import weakref
from typing import Any, cast

import pytest
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from dynamo.frontend.exchange import HttpExchange, TurnWrites, attach, take_exchange
from dynamo.runtime.context import Context
from dynamo.testing.waiting import within

HEADERS = ((b"x-a", b"1"), (b"x-b", b"2"))


class Wire(asyncio.Transport):
    """Keeps each write as it was made, in `log` with those of other connections."""

    def __init__(self, log: list[tuple[str, bytes]] | None = None, name: str = "") -> None:
        super().__init__()
        self.log = [] if log is None else log
        self.name = name
        self.closed = False

    def write(self, data: Any) -> None:
        self.log.append((self.name, bytes(data)))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    @property
    def writes(self) -> list[bytes]:
        return [data for name, data in self.log if name == self.name]


class Connection:
    """One request on a connection."""

    def __init__(self, writes: TurnWrites | None = None, wire: Wire | None = None, *, keep_alive: bool = True) -> None:
        self.wire = wire or Wire()
        self.answered = 0
        self.flow = FlowControl(self.wire)
        self.cycle = RequestResponseCycle(
            scope=cast("HTTPScope", {"type": "http", "method": "POST", "http_version": "1.1"}),
            transport=self.wire,
            flow=self.flow,
            logger=logging.getLogger("test"),
            access_logger=logging.getLogger("test"),
            access_log=False,
            default_headers=[(b"server", b"it")],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=self._on_response,
        )
        self.exchange = HttpExchange(self.cycle, writes or TurnWrites())

    def _on_response(self) -> None:
        self.answered += 1


async def turn() -> None:
    """Until the present turn of the event loop is over."""
    await asyncio.sleep(0)


async def test_an_answer_in_http() -> None:
    connection = Connection()
    connection.exchange.start(HEADERS)
    connection.exchange.write(b"Hello ")
    connection.exchange.write(b"0123456789ABCDEF")
    connection.exchange.end()
    head, _, body = b"".join(connection.wire.writes).partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"server: it",
        b"x-a: 1",
        b"x-b: 2",
        b"transfer-encoding: chunked",
    ]
    assert body == b"6\r\nHello \r\n10\r\n0123456789ABCDEF\r\n0\r\n\r\n"
    assert connection.answered == 1
    assert not connection.wire.closed


async def test_the_server_knows_how_far_it_is() -> None:
    connection = Connection()
    exchange, cycle = connection.exchange, connection.cycle
    assert (exchange.started, exchange.complete) == (False, False)
    exchange.start(())
    assert (exchange.started, exchange.complete) == (True, False)
    exchange.end()
    assert (exchange.started, exchange.complete) == (True, True)
    assert await within(cycle.receive()) == {"type": "http.disconnect"}


async def test_connection_that_is_not_kept() -> None:
    connection = Connection(keep_alive=False)
    connection.exchange.start(())
    connection.exchange.write(b"x")
    await turn()
    assert b"\r\nconnection: close\r\n" in connection.wire.writes[0]
    assert not connection.wire.closed
    connection.exchange.end()
    assert connection.wire.closed
    assert connection.wire.writes[-1] == b"0\r\n\r\n"


async def test_the_application_finds_its_exchange() -> None:
    connection = Connection()
    attach(connection.cycle.scope, connection.exchange)
    assert take_exchange(cast("dict[str, Any]", connection.cycle.scope)) is connection.exchange


async def test_a_request_leaves_nothing_to_the_garbage_collector() -> None:
    connection = Connection()
    attach(connection.cycle.scope, connection.exchange)
    connection.exchange.follow(Context())
    take_exchange(cast("dict[str, Any]", connection.cycle.scope)).start(())
    connection.exchange.end()
    await turn()
    connection.cycle.on_response = lambda: None  # as uvicorn does when the application returns
    cycle = weakref.ref(connection.cycle)
    gc.disable()
    try:
        del connection
        assert cycle() is None
    finally:
        gc.enable()


class TestTurns:
    async def test_writes_of_one_turn_leave_together_at_its_end(self) -> None:
        connection = Connection()
        connection.exchange.start(())
        connection.exchange.write(b"a")
        connection.exchange.write(b"b")
        assert connection.wire.writes == []
        await turn()
        [first] = connection.wire.writes
        assert first.endswith(b"\r\n\r\n1\r\na\r\n1\r\nb\r\n")
        connection.exchange.write(b"c")
        await turn()
        await turn()
        assert connection.wire.writes[1:] == [b"1\r\nc\r\n"]

    async def test_each_connection_gets_one_write_and_none_is_between_others(self) -> None:
        writes = TurnWrites()
        log: list[tuple[str, bytes]] = []
        connections = [Connection(writes, Wire(log, name)) for name in "abc"]
        for connection in connections:
            connection.exchange.start(())
        await turn()
        del log[:]
        for data in (b"1", b"2"):
            for connection in connections:
                connection.exchange.write(data)
        assert log == []
        await turn()
        assert log == [(name, b"1\r\n1\r\n1\r\n2\r\n") for name in "abc"]

    async def test_what_is_written_in_the_next_turn_leaves_with_it(self) -> None:
        writes = TurnWrites()
        first, second = Connection(writes), Connection(writes)
        first.exchange.write(b"1")
        await turn()
        second.exchange.write(b"2")
        first.exchange.write(b"3")
        assert (first.wire.writes, second.wire.writes) == ([b"1\r\n1\r\n"], [])
        await turn()
        assert (first.wire.writes[1:], second.wire.writes) == ([b"1\r\n3\r\n"], [b"1\r\n2\r\n"])

    async def test_the_end_does_not_wait(self) -> None:
        """The connection's next answer, which takes another way, must not overtake it."""
        writes = TurnWrites()
        ending, going = Connection(writes), Connection(writes)
        for connection in (ending, going):
            connection.exchange.write(b"x")
        ending.exchange.end()
        assert ending.wire.writes == [b"1\r\nx\r\n0\r\n\r\n"]
        assert going.wire.writes == []
        await turn()
        assert ending.wire.writes == [b"1\r\nx\r\n0\r\n\r\n"]
        assert going.wire.writes == [b"1\r\nx\r\n"]


class TestClient:
    async def test_leaves(self) -> None:
        connection, context = Connection(), Context()
        connection.exchange.follow(context)
        assert not context.is_stopped()
        connection.exchange.start(())
        connection.exchange.abandon()
        assert context.is_killed()
        assert await within(connection.cycle.receive()) == {"type": "http.disconnect"}
        connection.exchange.write(b"x")
        await turn()
        connection.exchange.end()
        assert connection.wire.writes == []
        assert connection.answered == 0, "a request that waits would begin"

    async def test_leaves_after_the_end(self) -> None:
        connection, context = Connection(), Context()
        connection.exchange.follow(context)
        connection.exchange.start(())
        connection.exchange.end()
        connection.exchange.abandon()
        assert not context.is_stopped()

    async def test_leaves_before_anybody_follows(self) -> None:
        connection, context = Connection(), Context()
        connection.exchange.abandon()
        connection.exchange.follow(context)
        assert context.is_killed()

    async def test_reads_slowly(self) -> None:
        connection, context = Connection(), Context()
        connection.exchange.follow(context)
        assert not context.is_paused()
        connection.exchange.pause()
        assert context.is_paused()
        connection.exchange.resume()
        assert not context.is_paused()
        assert not context.is_stopped()

    async def test_read_slowly_before_anybody_followed(self) -> None:
        """Such as the end of the last answer on this connection."""
        connection, context = Connection(), Context()
        connection.flow.pause_writing()
        connection.exchange.pause()
        connection.exchange.follow(context)
        assert context.is_paused()
        connection.exchange.resume()
        assert not context.is_paused()

    @pytest.mark.parametrize("change", [HttpExchange.pause, HttpExchange.resume, HttpExchange.abandon])
    async def test_may_do_anything_before_anybody_follows(self, change: Any) -> None:
        change(Connection().exchange)
