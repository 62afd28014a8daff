"""An engine of your own behind the OpenAI API: this one says the prompt backwards, a token at a time.

    python -m dynamo.frontend &
    python examples/own_engine.py smollm2 &
    curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
        -d '{"model": "backwards", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}'

The frontend does the rest: HTTP, chat template, tokens to text, stop strings. The argument names the model whose
tokenizer and chat template are used: smollm2, a directory, or a name on the Hugging Face hub.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from dynamo.llm import ModelInput, ModelType, register_model
from dynamo.runtime import Context, DistributedRuntime, dynamo_worker


async def generate(request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
    answer = request["token_ids"][::-1][: request["stop_conditions"].get("max_tokens")]
    for position, token_id in enumerate(answer, start=1):
        if context.is_stopped():  # the client has what it wants, or has left
            yield {"finish_reason": "cancelled"}
            return
        await asyncio.sleep(0.02)  # others compute here
        yield {"token_ids": [token_id], "finish_reason": "stop" if position == len(answer) else None}


@dynamo_worker()
async def worker(runtime: DistributedRuntime, model_path: str) -> None:
    endpoint = runtime.endpoint("dynamo.backwards.generate")
    await endpoint.start(generate)
    await register_model(ModelInput.Tokens, ModelType.Chat, endpoint, model_path, "backwards")
    print("ready", flush=True)
    await runtime.wait_for_shutdown()


if __name__ == "__main__":
    asyncio.run(worker(sys.argv[1] if len(sys.argv) > 1 else "smollm2"))
