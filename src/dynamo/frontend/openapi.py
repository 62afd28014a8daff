"""/openapi.json: the API described by the types that decode and encode it."""

from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dynamo.frontend.admission import HEADER_CHARS_MAX, TIMEOUT_HEADER, TIMEOUT_MS_MAX
from dynamo.frontend.status import HealthBody
from dynamo.protocols.openai import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    ErrorBody,
    Model,
    ModelList,
)

_REF = "#/components/schemas/{name}"


async def get_openapi(request: Request) -> Response:
    return Response(_document(), media_type="application/json")


@cache
def _document() -> bytes:
    types = [
        ChatCompletionRequest,
        ChatCompletion,
        ChatCompletionChunk,
        CompletionRequest,
        Completion,
        ErrorBody,
        Model,
        ModelList,
        HealthBody,
    ]
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Dynamo", "version": version("dynamo-py")},
            "paths": {
                "/v1/chat/completions": _post("ChatCompletionRequest", "ChatCompletion", "ChatCompletionChunk"),
                "/v1/completions": _post("CompletionRequest", "Completion", "Completion"),
                "/v1/models": _get("The models that have a worker", "ModelList") | {"security": _KEY},
                "/v1/models/{model}": _get("One of them", "Model")
                | {"parameters": [_MODEL_PARAMETER], "security": _KEY},
                "/health": _get("Whether a model is served, and by whom", "HealthBody"),
                "/live": _get("Whether this process lives"),
                "/metrics": {"get": {"summary": "Prometheus metrics", "responses": {"200": _text("text/plain")}}},
                "/openapi.json": _get("This description"),
            },
            "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        }
    )


_MODEL_PARAMETER = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
_TIMEOUT_PARAMETER = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "How many milliseconds the answer may take altogether",
    "schema": {"type": "integer", "minimum": 1, "maximum": TIMEOUT_MS_MAX},
}
_KEY: list[dict[str, list[str]]] = [{}, {"key": []}]  # whether one is needed is the server's choice
_SESSION_PARAMETER = {
    "name": "X-Dynamo-Session-ID",
    "in": "header",
    "description": "Requests of one session go to one worker, where the router keeps sessions",
    "schema": {"type": "string", "minLength": 1, "maxLength": HEADER_CHARS_MAX},
}


def _post(request: str, answer: str, chunk: str) -> dict[str, Any]:
    success = _json(answer)
    success["content"]["text/event-stream"] = {"schema": {"$ref": _REF.format(name=chunk)}}
    return {
        "post": {
            "summary": f"A {answer}, whole or as a stream of {chunk}",
            "parameters": [_SESSION_PARAMETER, _TIMEOUT_PARAMETER],
            "security": _KEY,
            "requestBody": {"required": True, "content": _json(request)["content"]},
            "responses": {"200": success, "default": _json("ErrorBody")},
        }
    }


def _get(summary: str, answer: str | None = None) -> dict[str, Any]:
    success = {"description": "OK"} if answer is None else _json(answer)
    return {"get": {"summary": summary, "responses": {"200": success, "default": _json("ErrorBody")}}}


def _json(name: str) -> dict[str, Any]:
    return {"description": name, "content": {"application/json": {"schema": {"$ref": _REF.format(name=name)}}}}


def _text(media_type: str) -> dict[str, Any]:
    return {"description": "OK", "content": {media_type: {"schema": {"type": "string"}}}}
