"""An engine of somebody's own: own_engine.py tokens|text MODEL_PATH. What it says depends on what it is asked."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from dynamo.llm.register import register_llm, register_model
from dynamo.protocols.model_card import ModelInput, ModelType
from dynamo.runtime import Context, DistributedRuntime, dynamo_worker

BOTH = ModelType.Chat | ModelType.Completions


async def tokens(request: dict[str, Any]) -> AsyncIterator[Any]:
    """Repeats the prompt; max_tokens says how to fail instead."""
    token_ids = request["token_ids"]
    yield {"token_ids": token_ids[:1]}
    match request.get("stop_conditions", {}).get("max_tokens"):
        case 101:
            raise ValueError("the engine tripped")
        case 102:
            yield "nonsense"
        case 103:
            return  # without a finish_reason
        case 104:
            yield {"token_ids": [10**9], "finish_reason": "stop"}
        case 105:
            yield {"token_ids": [], "finish_reason": "cancelled"}
        case 106:
            yield {"token_ids": [], "finish_reason": "error"}
        case 107:
            yield {"token_ids": [], "finish_reason": "no such reason"}
        case 108:
            raise ValueError(f"asked for {request.get('cache_salt')}, {request.get('session_id')}")
        case _:
            yield {"token_ids": token_ids[1:], "finish_reason": "stop"}


async def text(request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
    """Says what it was asked, as JSON, in two chunks; `seed` says how to fail instead."""
    said = json.dumps(request)
    yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": said[:5]}}]}
    if request.get("seed") == 101:
        raise ValueError("the engine tripped")
    if request.get("seed") == 102:
        yield 5
    if request.get("seed") == 103:
        yield {"error": {"message": "out of order"}}
    yield {"choices": [{"index": 0, "delta": {"content": said[5:]}, "finish_reason": "stop"}]}
    yield {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}}


@dynamo_worker()
async def worker(runtime: DistributedRuntime) -> None:
    kind, model_path = sys.argv[1:]
    endpoint = runtime.endpoint(f"dynamo.{kind}.generate")
    if kind == "tokens":
        await register_model(ModelInput.Tokens, BOTH, endpoint, model_path, "own-tokens", context_length=1000)
        await endpoint.serve_endpoint(tokens)
    else:
        await register_llm(ModelInput.Text, ModelType.Chat, endpoint, "own-text")
        await endpoint.serve_endpoint(text)


async def main() -> None:
    await worker()


if __name__ == "__main__":
    asyncio.run(main())
