"""The generating routes over request paths that do as the test says. (What needs HTTP is in tests/e2e.)"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from dynamo.errors import ConnectionLostError, ModelNotFoundError, OverloadedError, RequestCancelledError
from dynamo.frontend.exchange import Header
from dynamo.frontend.generation import ChatRoute, CompletionRoute
from dynamo.frontend.state import Frontend
from dynamo.llm.model_manager import ModelManager
from dynamo.llm.sequence import TextOutput
from dynamo.protocols.routing import SESSION_ID
from dynamo.runtime.context import Context
from dynamo.runtime.handler import Handler
from dynamo.runtime.stage import Deliver, pushed
from dynamo.telemetry.metrics import FrontendMetrics
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted, answers

TEXT = TextOutput(text="Hello", token_count=1, prompt_tokens=3)
END = TextOutput(finish_reason="stop")


class Pipeline:
    """Answers every request by `handler`."""

    def __init__(self, handler: Handler[Any, TextOutput]) -> None:
        self._stage = pushed(handler)

    async def chat(self, request: Any, body: bytes, context: Context, deliver: Deliver[TextOutput]) -> None:
        await self._stage(request, context, deliver)

    completion = chat


class Exchange:
    """A client that writes down what it is streamed, and that can leave and be slow."""

    def __init__(self) -> None:
        self.headers: tuple[Header, ...] | None = None
        self.writes: list[bytes] = []
        self.ended = False
        self.context: Context | None = None
        self._gone = False

    def follow(self, context: Context) -> None:
        self.context = context
        if self._gone:
            context.kill()

    def start(self, headers: Sequence[Header]) -> None:
        assert self.headers is None
        self.headers = tuple(headers)

    def write(self, data: bytes) -> None:
        assert self.headers is not None
        assert not self.ended
        self.writes.append(data)

    def end(self) -> None:
        assert not self.ended
        self.ended = True

    def leave(self) -> None:
        self._gone = True
        if self.context is not None:
            self.context.kill()


class Client:
    """One request, and what it is answered."""

    def __init__(self, handler: Handler[Any, TextOutput]) -> None:
        model = SimpleNamespace(card=SimpleNamespace(name="m"), pipeline=Pipeline(handler), instances=list)
        registry = CollectorRegistry()
        self.frontend = Frontend(
            models=cast("ModelManager", SimpleNamespace(get=lambda name, sees=None: model)),
            registry=registry,
            metrics=FrontendMetrics(registry),
            body_limit_bytes=10_000,
        )
        self.exchange = Exchange()
        self.sent: list[dict[str, Any]] = []  # in place of a stream
        self.taken = asyncio.Event()
        self.taken.set()

    async def post(self, *headers: Header, stream: bool = False, path: str = "chat") -> None:
        prompt = {"messages": [{"role": "user", "content": "Hi"}]} if path == "chat" else {"prompt": "Hi"}
        body = json.dumps({"model": "m", "stream": stream} | prompt).encode()
        route: Any = (ChatRoute if path == "chat" else CompletionRoute)(self.frontend)
        scope = {
            "type": "http",
            "headers": [(b"x-request-id", b"it"), *headers],
            "extensions": {"dynamo": {"exchange": self.exchange}},
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        await route(scope, receive, self._send)

    @property
    def status(self) -> int:
        return 200 if self.exchange.headers is not None else int(self.sent[0]["status"])

    @property
    def headers(self) -> tuple[Header, ...]:
        return tuple(self.sent[0]["headers"]) if self.exchange.headers is None else self.exchange.headers

    @property
    def body(self) -> bytes:
        if self.exchange.headers is not None:
            assert self.exchange.ended, "the stream has no end"
            assert self.sent == []
            return b"".join(self.exchange.writes)
        start, body = self.sent
        assert (start["type"], body["type"]) == ("http.response.start", "http.response.body")
        assert (b"content-length", b"%d" % len(body["body"])) in start["headers"]
        return cast("bytes", body["body"])

    def inflight(self) -> float | None:
        return self.frontend.registry.get_sample_value("dynamo_frontend_inflight_requests", {"model": "m"})

    def disconnected(self) -> float | None:
        return self.frontend.registry.get_sample_value("dynamo_frontend_disconnected_clients_total")

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        await self.taken.wait()


@pytest.mark.parametrize("path", ["chat", "completion"])
async def test_unary(path: str) -> None:
    client = Client(Scripted(answers(TEXT, END)))
    await within(client.post(path=path))
    answer = json.loads(client.body)
    assert client.status == 200
    assert answer["id"] == ("chatcmpl-it" if path == "chat" else "cmpl-it")
    assert (b"x-request-id", b"it") in client.headers
    assert client.inflight() == 0


@pytest.mark.parametrize("path", ["chat", "completion"])
async def test_stream(path: str) -> None:
    client = Client(Scripted(answers(TEXT, END)))
    await within(client.post(stream=True, path=path))
    assert client.body.startswith(b"data: {")
    assert client.body.endswith(b"data: [DONE]\n\n")
    assert len(client.exchange.writes) == 3, "each output is an event of its own, and then comes the end"
    assert (b"x-request-id", b"it") in client.headers
    assert (b"content-type", b"text/event-stream; charset=utf-8") in client.headers
    assert client.inflight() == 0


async def test_the_session_goes_with_the_request() -> None:
    handler = Scripted[Any, TextOutput](answers(TEXT, END))
    await within(Client(handler).post((b"x-dynamo-session-id", b"s 1")))
    await within(Client(handler).post())
    assert [context.metadata for context in handler.contexts] == [{SESSION_ID: "s 1"}, {}]


async def test_a_session_that_is_no_name_is_refused() -> None:
    client = Client(Scripted(answers(TEXT, END)))
    await within(client.post((b"x-dynamo-session-id", b"")))
    assert client.status == 400
    assert json.loads(client.body)["error"]["param"] == "x-dynamo-session-id"
    assert (b"x-request-id", b"it") in client.headers


async def test_events_do_not_wait_for_the_next() -> None:
    handler = Scripted[Any, TextOutput](answers(TEXT), hang=True)
    client = Client(handler)
    posting = asyncio.create_task(client.post(stream=True))
    await eventually(lambda: bool(client.exchange.writes))
    assert b"Hello" in client.exchange.writes[0]
    assert not client.exchange.ended
    posting.cancel()
    await within(posting)


@pytest.mark.parametrize("stream", [False, True])
async def test_failure_before_the_first_output(stream: bool) -> None:
    client = Client(Scripted(answers(ConnectionLostError("gone"))))
    await within(client.post(stream=stream))
    assert client.status == 502
    assert json.loads(client.body)["error"]["code"] == "worker_connection_lost"
    assert client.inflight() == 0


async def test_failure_in_mid_stream() -> None:
    client = Client(Scripted(answers(TEXT, ConnectionLostError("gone"))))
    await within(client.post(stream=True))
    assert client.status == 200
    *_, last, end = client.body.split(b"\n\n")
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "gone"
    assert end == b""
    assert b"[DONE]" not in client.body


@pytest.mark.parametrize("script", [answers(ZeroDivisionError("oh")), answers(TEXT, ZeroDivisionError("oh"))])
@pytest.mark.parametrize("stream", [False, True])
async def test_defect(script: Callable[[Any], Any], stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(Scripted(script))
    await within(client.post(stream=stream))
    assert b"internal error" in client.body
    assert b"oh" not in client.body.partition(b"internal error")[2]  # which is for the log
    assert "ZeroDivisionError: oh" in caplog.text
    assert client.inflight() == 0


async def test_request_path_that_refuses_at_once() -> None:
    def refuses(request: Any, context: Context) -> AsyncIterator[TextOutput]:
        raise ModelNotFoundError("no chat here", param="model")

    client = Client(refuses)
    await within(client.post())
    assert client.status == 404


async def test_defect_before_the_model_is_known(caplog: pytest.LogCaptureFixture) -> None:
    client = Client(Scripted(answers()))
    client.frontend.models = cast("ModelManager", None)
    await within(client.post())
    assert client.status == 500
    assert b"internal error" in client.body
    assert "AttributeError" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves(stream: bool) -> None:
    async def hangs(request: Any, context: Context) -> AsyncIterator[TextOutput]:
        if stream:
            yield TEXT
        await context.async_killed_or_stopped()
        assert context.is_killed()
        raise RequestCancelledError("the request was cancelled")

    client = Client(hangs)
    posting = asyncio.create_task(client.post(stream=stream))
    await eventually(lambda: bool(client.exchange.writes) if stream else client.inflight() == 1)
    client.exchange.leave()
    await within(posting)
    assert client.inflight() == 0
    assert client.disconnected() == 1


async def test_client_that_has_left_before_its_request_was_read() -> None:
    async def refuses(request: Any, context: Context) -> AsyncIterator[TextOutput]:
        assert context.is_killed()
        raise RequestCancelledError("the request was cancelled")
        yield

    client = Client(refuses)
    client.exchange.leave()
    await within(client.post())
    assert client.disconnected() == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_reads_slowly(stream: bool) -> None:
    """Nothing is made for it until it goes on reading."""
    waiting = asyncio.Event()

    async def pauses(request: Any, context: Context) -> AsyncIterator[TextOutput]:
        yield TEXT
        assert context is client.exchange.context
        context.pause()
        waiting.set()
        yield END

    client = Client(pauses)
    posting = asyncio.create_task(client.post(stream=stream))
    await within(waiting.wait())
    assert len(client.exchange.writes) == stream
    assert not posting.done()
    assert client.exchange.context is not None
    client.exchange.context.resume()
    await within(posting)
    assert b'"finish_reason":"stop"' in client.body


async def test_engine_that_gives_up_by_itself() -> None:
    client = Client(Scripted(answers(RequestCancelledError("not the client's wish"))))
    await within(client.post())
    assert client.status == 503
    assert client.disconnected() == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_shutdown_that_cannot_wait(stream: bool) -> None:
    handler = Scripted[Any, TextOutput](answers(TEXT), hang=True)
    client = Client(handler)
    posting = asyncio.create_task(client.post(stream=stream))
    await eventually(lambda: bool(client.exchange.writes) if stream else handler.open == 1)
    posting.cancel()
    await within(posting)
    assert b'"code":"service_unavailable"' in client.body
    assert handler.open == 0
    assert client.inflight() == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_deadline(stream: bool) -> None:
    handler = Scripted[Any, TextOutput](answers(TEXT), hang=True)
    client = Client(handler)
    await within(client.post((b"x-request-timeout-ms", b"50"), stream=stream))
    assert client.status == (200 if stream else 504)
    assert b'"code":"deadline_exceeded"' in client.body
    assert handler.open == 0
    assert client.inflight() == 0


async def test_deadline_is_for_making_the_answer_not_for_taking_it() -> None:
    client = Client(Scripted(answers(TEXT, END)))
    client.taken.clear()
    posting = asyncio.create_task(client.post((b"x-request-timeout-ms", b"200")))
    await eventually(lambda: len(client.sent) == 1)
    with pytest.raises(TimeoutError):  # it is still being taken long after the deadline
        await within(asyncio.shield(posting), 0.4)
    client.taken.set()
    await within(posting)
    assert client.status == 200
    assert b"Hello" in client.body


async def test_refusal_tells_when_to_come_again() -> None:
    client = Client(Scripted(answers(OverloadedError("full"))))
    await within(client.post())
    assert client.status == 503
    assert (b"retry-after", b"1") in client.headers
