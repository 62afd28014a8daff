"""Whatever a client makes of /openapi.json, it gets an answer that is documented there, and soon."""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from dynamo.protocols.openai import ChatCompletionChunk, Completion

from .conftest import Stack
from .raw_http import get
from .served import ECHO, MOCK

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHECKS: list[Any] = [
    not_a_server_error,  # the first one
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CHUNKS: dict[str, type] = {"/v1/chat/completions": ChatCompletionChunk, "/v1/completions": Completion}
AnyCase = Case[Any]
ANSWER_S = 10.0
SESSION = "X-Dynamo-Session-ID"
DEADLINE = "x-request-timeout-ms"
TOKENS_MAX = 16


def reduced(case: AnyCase, draw: Any) -> None:
    """Makes of a request with everything in it, which is always wrong somewhere, one with a few odd fields.

    It names a model that there is, most of the time, and asks for little.
    """
    if draw(st.integers(0, 5)):
        case.headers.pop(SESSION, None)
    if not isinstance(case.body, dict):
        return
    names = sorted(case.body)
    kept = draw(st.sets(st.sampled_from(names), max_size=4)) if names else set()
    body = {name: case.body[name] for name in kept}
    if draw(st.integers(0, 5)):
        body["model"] = draw(st.sampled_from([MOCK, ECHO]))
    for name in ("max_tokens", "max_completion_tokens"):
        if isinstance(number := body.get(name), int):
            body[name] = min(number, TOKENS_MAX)
    case.body = {"model": MOCK, "max_tokens": TOKENS_MAX, **_input(case), **body}


def _input(case: AnyCase) -> dict[str, Any]:
    if "chat" in case.operation.path:
        return {"messages": [{"role": "user", "content": "hello"}]}
    return {"prompt": "hello"}


def check_events(path: str, stream: bytes) -> None:
    *events, done, rest = stream.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    for event in events:
        msgspec.json.decode(event.removeprefix(b"data: "), type=CHUNKS[path])


def runs(url: str) -> Iterator[tuple[Any, GenerationMode, int]]:
    """The operations with how they are to be called, right and wrong, and how many times."""
    for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        if operation.method != "post":
            yield operation, GenerationMode.POSITIVE, 10
        else:  # to make up chats takes long
            many = 20 if "chat" in operation.path else 60
            yield operation, GenerationMode.POSITIVE, many
            yield operation, GenerationMode.NEGATIVE, many


def call_all(url: str) -> set[tuple[str, int]]:
    """The operations with the statuses that they have answered."""
    seen: set[tuple[str, int]] = set()
    for operation, mode, many in runs(url):

        @settings(
            max_examples=many,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(case=operation.as_strategy(mode), data=st.data())
        def answers(case: AnyCase, data: st.DataObject) -> None:
            if case.operation.method == "post":
                reduced(case, data.draw)
            response = case.call(timeout=ANSWER_S)
            seen.add((case.operation.path, response.status_code))
            if response.headers["content-type"][0].startswith("text/event-stream"):
                check_events(case.operation.path, response.content)  # OpenAPI cannot say what each event holds
            else:
                late = response.status_code == 504 and DEADLINE in case.headers  # as the client wants it
                case.validate_response(response, checks=CHECKS[late:])

        answers()
    return seen


async def test_every_answer_is_documented(stack: Stack) -> None:
    seen = await asyncio.to_thread(call_all, stack.url)
    for path in CHUNKS:
        assert {(path, 200), (path, 400)} <= seen
    assert (await get(stack.url, "/health")).status == 200
