"""register_model in processes of somebody's own, who makes mistakes too."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from dynamo.testing import Program
from dynamo.testing.deployment import deployment

from .raw_http import JSON_HEADERS, Response, events, get, post, request
from .served import until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROGRAM = str(Path(__file__).with_name("own_engine.py"))
HELLO: Any = [{"role": "user", "content": "Hello world"}]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(tiny_model: Path) -> AsyncIterator[tuple[Program, str]]:
    """A frontend and its URL; behind it one worker that takes tokens, and two that take text."""
    async with deployment() as started:
        await started.python(PROGRAM, "tokens", str(tiny_model))
        await started.python(PROGRAM, "text", "-")
        await started.python(PROGRAM, "text", "-")
        frontend, url = await started.frontend()
        await until_served(url, 3)
        yield frontend, url


@pytest.fixture
def url(served: tuple[Program, str]) -> str:
    return served[1]


async def chat(url: str, model: str, **fields: Any) -> Response:
    return await post(url, "/v1/chat/completions", {"model": model, "messages": HELLO} | fields)


async def test_both_are_models(url: str) -> None:
    assert [model["id"] for model in (await get(url, "/v1/models")).json()["data"]] == ["own-text", "own-tokens"]


async def test_tokens(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = await client.chat.completions.create(model="own-tokens", messages=HELLO)
        assert "Hello world" in (answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "stop"
        completion = await client.completions.create(model="own-tokens", prompt="Hello world")
        assert completion.choices[0].text == "Hello world"


async def test_what_goes_with_the_tokens_to_the_worker(url: str) -> None:
    body = {"model": "own-tokens", "prompt": "Hello", "max_tokens": 108, "cache_salt": "tenant-1"}
    headers = JSON_HEADERS | {"X-Dynamo-Session-ID": "conversation-7"}
    failed = await request(url, "POST", "/v1/completions", body, headers)
    assert "asked for tenant-1, conversation-7" in failed.error()["message"]


async def test_context_length_that_was_registered(url: str) -> None:
    error = (await post(url, "/v1/completions", {"model": "own-tokens", "prompt": [5] * 1001})).error()
    assert error["code"] == "context_length_exceeded"
    assert "1000" in error["message"]


FAILURES = {
    101: (500, "the engine tripped"),
    102: (502, "wrong shape"),
    103: (500, "finish_reason"),
    106: (500, "failed"),
    107: (502, "wrong shape"),
}


@pytest.mark.parametrize("how", FAILURES)
async def test_engine_that_fails(served: tuple[Program, str], how: int) -> None:
    frontend, url = served
    status, message = FAILURES[how]
    unary = await chat(url, "own-tokens", max_tokens=how)
    assert unary.status == status
    assert message in unary.error()["message"]
    stream = await chat(url, "own-tokens", max_tokens=how, stream=True)
    if stream.status == 200:  # the first token may have been on its way
        *_, last = events(stream.body)
        assert message in last["error"]["message"]
    else:
        assert stream.status == status
    assert (await chat(url, "own-tokens")).status == 200
    assert "Traceback" not in frontend.output


async def test_engine_that_gives_a_request_up_goes_on_with_it_as_with_another_ones(url: str) -> None:
    answer = await chat(url, "own-tokens", max_tokens=105)
    assert answer.status == 200
    assert answer.json()["choices"][0]["finish_reason"] == "stop"


async def test_token_id_outside_the_vocabulary_has_no_text(url: str) -> None:
    answer = await chat(url, "own-tokens", max_tokens=104)
    assert answer.status == 200
    assert answer.json()["usage"]["completion_tokens"] == 2


async def test_text(url: str) -> None:
    body = {"n": 1, "temperature": 0.5, "tools": None, "own_field": {"deep": [1, 2.5, "é", None, 2**63]}}
    answer = (await chat(url, "own-text", **body)).json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"model": "own-text", "messages": HELLO} | body
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}


async def test_text_as_a_stream(url: str) -> None:
    response = await chat(url, "own-text", stream=True, stream_options={"include_usage": True})
    *chunks, usage, done = events(response.body)
    assert done == "[DONE]"
    assert usage["usage"]["total_tokens"] == 13
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    said = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert json.loads(said)["messages"] == HELLO


async def test_route_that_the_model_does_not_answer(url: str) -> None:
    response = await post(url, "/v1/completions", {"model": "own-text", "prompt": "Hello"})
    assert response.status == 404
    assert response.error()["code"] == "model_not_found"


@pytest.mark.parametrize(("seed", "message"), [(101, "the engine tripped"), (102, "no chunk"), (103, "out of order")])
async def test_text_engine_that_fails(url: str, seed: int, message: str) -> None:
    unary = await chat(url, "own-text", seed=seed)
    assert unary.status == 500
    assert message in unary.error()["message"]
    *_, last = events((await chat(url, "own-text", seed=seed, stream=True)).body)
    assert message in last["error"]["message"]


async def test_text_that_cannot_travel_is_the_clients_mistake(url: str) -> None:
    for value in (2**64, -(2**63) - 1, 10**40):
        response = await chat(url, "own-text", own_field=value)
        assert response.status == 400
        assert "integer" in response.error()["message"]


async def test_text_worker_that_the_client_names(url: str) -> None:
    health = (await get(url, "/health")).json()
    workers = [i["instance_id"] for i in health["instances"] if i["component"] == "text"]
    for worker in workers:
        assert (await chat(url, "own-text", nvext={"backend_instance_id": worker})).status == 200
    refused = await chat(url, "own-text", nvext={"backend_instance_id": 5})
    assert (refused.status, refused.error()["param"]) == (400, "nvext.backend_instance_id")


async def test_text_worker_is_named_in_the_response(url: str) -> None:
    health = (await get(url, "/health")).json()
    workers = [i["instance_id"] for i in health["instances"] if i["component"] == "text"]
    answer = (await chat(url, "own-text", nvext={"extra_fields": ["worker_id"]})).json()
    assert answer["nvext"]["worker_id"]["decode_worker_id"] in workers
