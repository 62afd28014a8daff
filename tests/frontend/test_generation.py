"""The generating routes over request paths that do as the test says. (What needs HTTP is in tests/e2e.)"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from dynamo.errors import ConnectionLostError, ModelNotFoundError, OverloadedError, RequestCancelledError
from dynamo.frontend.generation import ChatRoute, CompletionRoute
from dynamo.frontend.state import Frontend
from dynamo.llm.model_manager import ModelManager
from dynamo.llm.sequence import TextOutput
from dynamo.runtime.context import Context
from dynamo.telemetry.metrics import FrontendMetrics
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted, answers

TEXT = TextOutput(text="Hello", token_count=1, prompt_tokens=3)
END = TextOutput(finish_reason="stop")


class Pipeline:
    """Answers every request by `handler`."""

    def __init__(self, handler: Callable[[Any, Context], AsyncIterator[TextOutput]]) -> None:
        self._handler = handler

    def chat(self, request: Any, body: bytes, context: Context) -> AsyncIterator[TextOutput]:
        return self._handler(request, context)

    completion = chat


class Client:
    """One request, and what it is answered."""

    def __init__(self, handler: Callable[[Any, Context], AsyncIterator[TextOutput]]) -> None:
        model = SimpleNamespace(card=SimpleNamespace(name="m"), pipeline=Pipeline(handler))
        registry = CollectorRegistry()
        self.frontend = Frontend(
            models=cast("ModelManager", SimpleNamespace(get=lambda name: model)),
            registry=registry,
            metrics=FrontendMetrics(registry),
            body_limit_bytes=10_000,
        )
        self.sent: list[dict[str, Any]] = []
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue(10)

    async def post(self, *, stream: bool = False, path: str = "chat") -> None:
        prompt = {"messages": [{"role": "user", "content": "Hi"}]} if path == "chat" else {"prompt": "Hi"}
        body = json.dumps({"model": "m", "stream": stream} | prompt).encode()
        await self._incoming.put({"type": "http.request", "body": body, "more_body": False})
        route: Any = (ChatRoute if path == "chat" else CompletionRoute)(self.frontend)
        await route({"type": "http", "headers": [(b"x-request-id", b"it")]}, self._incoming.get, self._send)

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        assert self.sent[0]["type"] == "http.response.start"
        assert not self.sent[-1].get("more_body", False), "the answer has no end"
        return b"".join(message["body"] for message in self.sent[1:])

    def inflight(self) -> float | None:
        return self.frontend.registry.get_sample_value("dynamo_frontend_inflight_requests", {"model": "m"})

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("path", ["chat", "completion"])
async def test_unary(path: str) -> None:
    client = Client(Scripted(answers(TEXT, END)))
    await within(client.post(path=path))
    answer = json.loads(client.body)
    assert client.status == 200
    assert answer["id"] == ("chatcmpl-it" if path == "chat" else "cmpl-it")
    assert (b"x-request-id", b"it") in client.sent[0]["headers"]
    assert client.inflight() == 0


@pytest.mark.parametrize("path", ["chat", "completion"])
async def test_stream(path: str) -> None:
    client = Client(Scripted(answers(TEXT, END)))
    await within(client.post(stream=True, path=path))
    assert client.body.startswith(b"data: {")
    assert client.body.endswith(b"data: [DONE]\n\n")
    assert client.sent[1]["more_body"]  # the first event did not wait for the last


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
    await eventually(lambda: client.inflight() == 1)
    client.leave()
    await within(posting)
    assert client.inflight() == 0
    assert client.frontend.registry.get_sample_value("dynamo_frontend_disconnected_clients_total") == 1


async def test_engine_that_gives_up_by_itself() -> None:
    client = Client(Scripted(answers(RequestCancelledError("not the client's wish"))))
    await within(client.post())
    assert client.status == 503
    assert client.frontend.registry.get_sample_value("dynamo_frontend_disconnected_clients_total") == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_shutdown_that_cannot_wait(stream: bool) -> None:
    handler = Scripted[Any, TextOutput](answers(TEXT), hang=True)
    client = Client(handler)
    posting = asyncio.create_task(client.post(stream=stream))
    await eventually(lambda: handler.open == 1)
    await asyncio.sleep(0)
    posting.cancel()
    await within(posting)
    assert b'"code":"service_unavailable"' in client.body
    assert handler.open == 0
    assert client.inflight() == 0


async def test_refusal_tells_when_to_come_again() -> None:
    client = Client(Scripted(answers(OverloadedError("full"))))
    await within(client.post())
    assert client.status == 503
    assert (b"retry-after", b"1") in client.sent[0]["headers"]
