"""A frontend that wants to see a key."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from dynamo.frontend.api_keys import key_digest
from dynamo.testing import within

from .conftest import Stack
from .raw_http import JSON_HEADERS, Response, connect, encoded, get, request
from .served import ECHO, MOCK, until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
KEYS = [
    {"name": "all", "sha256": key_digest("key-all")},
    {"name": "echo", "sha256": key_digest("key-echo"), "models": [ECHO, "not/there"]},
    {"name": "one", "sha256": key_digest("key-one"), "concurrent_requests": 1},
    {"name": "slow", "sha256": key_digest("key-slow"), "requests_per_minute": 2},
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """A frontend with keys."""

    url: str
    file: Path

    def openai(self, key: str) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    async def post(self, key: str | None, **fields: Any) -> Response:
        return await request(self.url, "POST", CHAT, chat(**fields), headers(key))


def headers(key: str | None) -> dict[str, str]:
    return JSON_HEADERS if key is None else JSON_HEADERS | {"authorization": f"Bearer {key}"}


def chat(**fields: Any) -> bytes:
    return encoded({"model": MOCK, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2} | fields)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def locked(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Locked]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_text(json.dumps({"keys": KEYS}))
    _, url = await stack.deployment.frontend("--api-keys-file", str(file))
    await until_served(url, 3)
    yield Locked(url=url, file=file)


@pytest.mark.parametrize("key", [None, "", "key-al", "key-all2", key_digest("key-all"), "x" * 10_000])
async def test_no_key_of_ours(locked: Locked, key: str | None) -> None:
    for response in (
        await locked.post(key),
        await locked.post(key, stream=True),
        await request(locked.url, "POST", "/v1/completions", b"not even JSON", headers(key)),
        await request(locked.url, "GET", "/v1/models", b"", headers(key)),
        await request(locked.url, "GET", f"/v1/models/{MOCK}", b"", headers(key)),
    ):
        assert response.status == 401
        assert response.error()["code"] == "invalid_api_key"
        assert response.error()["type"] == "invalid_request_error"
        assert response.headers["www-authenticate"] == "Bearer"


async def test_body_of_a_stranger_is_not_even_read(locked: Locked) -> None:
    async with connect(locked.url) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 40000000\r\n\r\n"
        connection.send(head.encode())
        assert (await connection.response()).status == 401


async def test_probes_need_none(locked: Locked) -> None:
    for path in ("/health", "/live", "/metrics", "/openapi.json"):
        assert (await get(locked.url, path)).status == 200


async def test_official_client(locked: Locked) -> None:
    hello: Any = [{"role": "user", "content": "Hello"}]
    async with locked.openai("key-all") as client:
        answer = await client.chat.completions.create(model=MOCK, messages=hello, max_tokens=3)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
        stream = await client.chat.completions.create(model=MOCK, messages=hello, max_tokens=3, stream=True)
        assert [chunk async for chunk in stream]
        assert {model.id for model in (await client.models.list()).data} == {MOCK, ECHO}
    async with locked.openai("wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model=MOCK, messages=hello)


async def test_models_of_others_do_not_exist(locked: Locked) -> None:
    async with locked.openai("key-echo") as client:
        assert [model.id for model in (await client.models.list()).data] == [ECHO]
        assert (await client.models.retrieve(ECHO)).id == ECHO
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(MOCK)
    assert (await locked.post("key-echo", model=ECHO)).status == 200
    for model in (MOCK, "invented", "not/there"):
        refused = await locked.post("key-echo", model=model)
        assert (refused.status, refused.error()["code"]) == (404, "model_not_found")
        assert MOCK not in refused.error()["message"].replace(f"'{model}'", "")


async def test_concurrent_requests(locked: Locked) -> None:
    long = {"stream": True, "max_tokens": 20_000, "ignore_eos": True}
    async with connect(locked.url) as connection:
        connection.post(CHAT, chat(**long), headers("key-one"))
        assert (await connection.head())[0] == 200
        refused = await locked.post("key-one")
        assert (refused.status, refused.error()["code"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await locked.post("key-all")).status == 200, "others are not concerned"
        connection.reset()
    await within(_until_let_in(locked))
    for fields in ({"model": "none"}, {"temperature": 9}, {}, {"stream": True}, {}):  # each gives its place back
        assert (await locked.post("key-one", **fields)).status != 429


async def _until_let_in(locked: Locked) -> None:
    while (await locked.post("key-one")).status == 429:  # noqa: ASYNC110 - another process's state
        await asyncio.sleep(0.01)


async def test_requests_per_minute(locked: Locked) -> None:
    answers = [await locked.post("key-slow") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 30
    async with locked.openai("key-slow") as client:
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model=MOCK, messages=[{"role": "user", "content": "Hello"}])
        await client.models.list()  # is not counted
    refused = (await get(locked.url, "/metrics")).body.decode()
    assert 'dynamo_frontend_refused_requests_total{reason="rate_limit_exceeded"}' in refused


async def test_file_that_changes(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": KEYS[:1]}))
    _, url = await stack.deployment.frontend("--api-keys-file", str(file))
    await until_served(url, 3)
    locked = Locked(url=url, file=file)
    assert (await locked.post("key-all")).status == 200
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"keys": [{"name": "new", "key": "key-new"}]}))
    new.replace(file)
    await within(_until_refused(locked))
    assert (await locked.post("key-new")).status == 200


async def _until_refused(locked: Locked) -> None:
    while (await locked.post("key-all")).status != 401:  # noqa: ASYNC110 - another process's state
        await asyncio.sleep(0.02)


async def test_keys_of_the_environment(stack: Stack) -> None:
    _, url = await stack.deployment.frontend(environ={"DYN_API_KEYS": "k1,k2"})
    await until_served(url, 3)
    for key, status in (("k1", 200), ("k2", 200), ("k3", 401), (None, 401)):
        assert (await request(url, "POST", CHAT, chat(), headers(key))).status == status


async def test_file_that_cannot_be_used_ends_the_frontend(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text('{"keys": []}')
    program = await stack.deployment.python("-m", "dynamo.frontend", "--http-port", "0", "--api-keys-file", str(file))
    assert await program.exit_code(30) == 1
    assert "there is no API key" in program.output
