"""The routes around the answers: models, health, metrics, the description of the API, request ids."""

import asyncio
import re
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from .conftest import Stack
from .raw_http import JSON_HEADERS, get, post, request
from .served import ECHO, MOCK, until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = {"model": MOCK, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}


async def test_models(stack: Stack) -> None:
    models = await stack.openai.models.list()
    assert [model.id for model in models.data] == [MOCK, ECHO]
    assert all(model.object == "model" and model.created > 1_700_000_000 for model in models.data)


@pytest.mark.parametrize("path", ["org/echo", "org%2Fecho"])
async def test_model_with_a_slash(stack: Stack, path: str) -> None:
    assert (await get(stack.url, f"/v1/models/{path}")).json()["id"] == ECHO
    assert (await stack.openai.models.retrieve(ECHO)).id == ECHO


async def test_model_that_does_not_exist(stack: Stack) -> None:
    response = await get(stack.url, "/v1/models/none")
    assert response.status == 404
    assert response.error()["code"] == "model_not_found"


async def test_health(stack: Stack) -> None:
    response = await get(stack.url, "/health")
    body = response.json()

    assert response.status == 200
    assert body["status"] == "healthy"
    assert body["models"] == [MOCK, ECHO]
    assert len(body["instances"]) == 3
    for instance in body["instances"]:
        assert (instance["namespace"], instance["component"]) == ("dynamo", "backend")
        assert instance["endpoint"] == "generate"
    assert (await get(stack.url, "/live")).json() == {"status": "live"}


async def test_metrics(stack: Stack) -> None:
    before = await _metrics(stack)
    body = CHAT | {"max_tokens": 40, "ignore_eos": True}
    await post(stack.url, "/v1/chat/completions", body)
    await post(stack.url, "/v1/chat/completions", body | {"stream": True})
    await post(stack.url, "/v1/chat/completions", body | {"logprobs": True})
    after = await _metrics(stack)

    def grown(sample: str) -> float:
        return after[sample] - before.get(sample, 0.0)

    requests = 'dynamo_frontend_requests_total{endpoint="chat_completions",error_type="%s",model="mock",%s'
    assert grown(requests % ("", 'request_type="unary",status="success"}')) == 1
    assert grown(requests % ("", 'request_type="stream",status="success"}')) == 1
    assert grown(requests % ("unsupported_feature", 'request_type="unary",status="error"}')) == 1
    assert grown('dynamo_frontend_output_tokens_total{model="mock"}') == 80
    assert grown('dynamo_frontend_time_to_first_token_seconds_count{model="mock"}') == 2
    assert 40 < grown('dynamo_frontend_inter_token_latency_seconds_count{model="mock"}') <= 78
    assert grown('dynamo_frontend_request_duration_seconds_count{model="mock"}') == 3
    assert grown('dynamo_frontend_input_sequence_tokens_count{model="mock"}') == 2
    assert grown('dynamo_frontend_output_sequence_tokens_sum{model="mock"}') == 80
    assert after['dynamo_frontend_inflight_requests{model="mock"}'] == 0
    assert after['dynamo_frontend_queued_requests{model="mock"}'] == 0
    assert after['dynamo_frontend_model_ready{model="mock"}'] == 1
    assert "dynamo_frontend_disconnected_clients_total" in after


async def test_names_of_clients_invention_are_no_labels(stack: Stack) -> None:
    await post(stack.url, "/v1/chat/completions", CHAT | {"model": "invented"})
    assert not any("invented" in sample for sample in await _metrics(stack))


async def test_openapi_describes_every_route(stack: Stack) -> None:
    document = (await get(stack.url, "/openapi.json")).json()

    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/models/{model}",
        "/health",
        "/live",
        "/metrics",
        "/openapi.json",
    }
    references = set(re.findall(r'"\$ref": ?"([^"]*)"', (await get(stack.url, "/openapi.json")).body.decode()))
    assert references
    for reference in references:
        _resolve(document, reference)
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_openapi_knows_what_is_said_to_routers_and_by_them(stack: Stack) -> None:
    document = (await get(stack.url, "/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert schemas["AgentHints"]["properties"].keys() == {"priority"}
    assert "routing" in schemas["NvExtResponse"]["properties"]
    assert "candidates" in schemas["RoutingReport"]["properties"]
    for path in ("/v1/chat/completions", "/v1/completions"):
        headers = document["paths"][path]["post"]["parameters"]
        assert [header["name"] for header in headers] == ["X-Dynamo-Session-ID", "x-request-timeout-ms"]
        assert {header["in"] for header in headers} == {"header"}
    for request_type in ("ChatCompletionRequest", "CompletionRequest"):
        assert "cache_salt" in schemas[request_type]["properties"]


async def test_openapi_matches_what_is_answered(stack: Stack) -> None:
    document = (await get(stack.url, "/openapi.json")).json()
    answers = {
        "ChatCompletion": await post(stack.url, "/v1/chat/completions", CHAT),
        "Completion": await post(stack.url, "/v1/completions", {"model": ECHO, "prompt": "Hello"}),
        "ErrorBody": await post(stack.url, "/v1/completions", {}),
        "ModelList": await get(stack.url, "/v1/models"),
        "HealthBody": await get(stack.url, "/health"),
    }
    for name, answer in answers.items():
        jsonschema.validate(answer.json(), {**document, "$ref": f"#/components/schemas/{name}"})


@pytest.mark.parametrize("stream", [False, True])
async def test_request_id(stack: Stack, stream: bool) -> None:
    sent = {**JSON_HEADERS, "x-request-id": "My id, 1/2"}
    response = await request(stack.url, "POST", "/v1/chat/completions", CHAT | {"stream": stream}, sent)
    assert response.headers["x-request-id"] == "My id, 1/2"
    assert b'"chatcmpl-My id, 1/2"' in response.body
    await stack.frontend.line("My id, 1/2 model=mock")  # in the access log

    ids = {(await post(stack.url, "/v1/chat/completions", CHAT)).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2


async def test_request_id_of_a_refused_request(stack: Stack) -> None:
    sent = {**JSON_HEADERS, "x-request-id": "refused-1"}
    response = await request(stack.url, "POST", "/v1/chat/completions", b"{}", sent)
    assert response.status == 400
    assert response.headers["x-request-id"] == "refused-1"
    assert "error=invalid_request" in await stack.frontend.line("refused-1")


async def test_two_requests_may_have_the_same_id(stack: Stack) -> None:
    """Ids are the clients' own choice, and engines must not take them for unique."""
    sent = {**JSON_HEADERS, "x-request-id": "twice"}
    for model in (MOCK, ECHO):
        body = CHAT | {"model": model, "n": 2, "max_tokens": 20}
        answers = await asyncio.gather(
            *(request(stack.url, "POST", "/v1/chat/completions", body, sent) for _ in range(4))
        )
        assert [answer.status for answer in answers] == [200] * 4


async def test_access_log_can_be_turned_off(stack: Stack) -> None:
    frontend, url = await stack.deployment.frontend("--no-access-log")
    await until_served(url, 3)
    await post(url, "/v1/chat/completions", CHAT)
    assert (await get(url, "/live")).status == 200
    assert "chat_completions" not in frontend.output


async def _metrics(stack: Stack) -> dict[str, float]:
    response = await get(stack.url, "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = [line.rpartition(" ") for line in response.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


def _resolve(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document
