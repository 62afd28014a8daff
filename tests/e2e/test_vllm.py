"""The whole stack with a real model: `python -m dynamo.vllm` behind a frontend, asked by OpenAI's own client."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletionUserMessageParam

from dynamo.runtime.process import READY
from dynamo.testing.deployment import deployment

from .load import Loads, loads
from .served import until_served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="session")]

MODEL = "smollm2"
VLLM_START_S = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A vLLM worker and the way to it."""

    openai: AsyncOpenAI
    loads: Loads


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(smollm2_dir: Path) -> AsyncIterator[Served]:
    async with deployment() as started:
        worker = await started.python("-m", "dynamo.vllm", "--model", str(smollm2_dir), "--served-model-name", MODEL)
        _, url = await started.frontend()
        await worker.line(READY, VLLM_START_S)
        await until_served(url, 1)
        async with loads(started) as asked, AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as openai:
            yield Served(openai=openai, loads=asked)


def user(text: str) -> ChatCompletionUserMessageParam:
    return {"role": "user", "content": text}


async def test_capital_of_france(served: Served) -> None:
    """As the README asks it."""
    answer = await served.openai.chat.completions.create(model=MODEL, messages=[user("What is the capital of France?")])
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


async def test_eight_streams_at_once(served: Served) -> None:
    async def ask(number: int) -> str:
        stream = await served.openai.chat.completions.create(
            model=MODEL, temperature=0, max_tokens=16, stream=True, messages=[user(f"Count from {number} upwards.")]
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    answers = await asyncio.gather(*(ask(number) for number in range(8)))
    assert all(answers)


async def test_stop_string_ends_the_answer_before_it(served: Served) -> None:
    answer = await served.openai.chat.completions.create(
        model=MODEL, temperature=0, stop=[" Paris"], messages=[user("What is the capital of France?")]
    )
    assert answer.choices[0].message.content == "The capital of France is"
    assert answer.choices[0].finish_reason == "stop"


async def test_json_schema(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "inhabitants": {"type": "integer"}},
        "required": ["city", "inhabitants"],
        "additionalProperties": False,
    }
    answer = await served.openai.chat.completions.create(
        model=MODEL,
        temperature=0,
        max_tokens=100,
        messages=[user("Describe Paris as JSON.")],
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
    )
    assert set(json.loads(answer.choices[0].message.content or "")) == {"city", "inhabitants"}


async def test_logprobs(served: Served) -> None:
    answer = await served.openai.chat.completions.create(
        model=MODEL, temperature=0, max_tokens=4, logprobs=True, top_logprobs=2, messages=[user("Say yes.")]
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == answer.choices[0].message.content
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in logprobs.content)


async def test_client_that_leaves_frees_its_place(served: Served) -> None:
    stream = await served.openai.chat.completions.create(
        model=MODEL, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}, messages=[user("Tell a story.")]
    )
    async for _ in stream:
        break
    await stream.close()
    await served.loads.until(0, 5)


async def test_prompt_over_the_context(served: Served) -> None:
    with pytest.raises(BadRequestError) as refused:
        await served.openai.chat.completions.create(model=MODEL, messages=[user("word " * 4000)])
    assert refused.value.code == "context_length_exceeded"
