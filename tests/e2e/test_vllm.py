"""The whole stack with a real model, asked by OpenAI's own client: two `python -m dynamo.vllm` and two frontends, one
of which routes by KV cache. vLLM takes most of a minute to start, so all tests share them; the last one kills a worker.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletionUserMessageParam

from dynamo.engines.vllm.ownership import descendants
from dynamo.runtime.process import READY
from dynamo.testing import Program
from dynamo.testing.deployment import deployment

from ..engines.vllm.processes import kill_and_wait
from .conversation import MODEL, converse
from .load import Loads, loads
from .served import until_served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]

VLLM_START_S = 400.0  # two at once, on two cores
CONVERSATIONS = 10
TURNS = 3
AT_ONCE = 2
BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Two vLLM workers and the ways to them."""

    workers: list[Program]
    openai: AsyncOpenAI
    kv_routed: AsyncOpenAI
    kv_routed_url: str
    loads: Loads


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(smollm2_dir: Path) -> AsyncIterator[Served]:
    async with deployment() as started:
        arguments = ["-m", "dynamo.vllm", "--model", str(smollm2_dir), "--served-model-name", MODEL]
        workers = [await started.python(*arguments) for _ in range(2)]
        _, url = await started.frontend()
        _, kv_routed_url = await started.frontend("--router-mode", "kv")
        for worker in workers:
            await worker.line(READY, VLLM_START_S)
        for each in (url, kv_routed_url):
            await until_served(each, 2)
        async with loads(started) as asked, client(url) as openai, client(kv_routed_url) as kv_routed:
            yield Served(workers=workers, openai=openai, kv_routed=kv_routed, kv_routed_url=kv_routed_url, loads=asked)


def client(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120)


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


async def test_later_turns_go_to_the_worker_that_has_the_history(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    room = asyncio.Semaphore(AT_ONCE)
    numbers = range(CONVERSATIONS)
    conversations = await asyncio.gather(*(converse(served.kv_routed, number, TURNS, room) for number in numbers))
    for turns in conversations:
        assert len({turn.worker_id for turn in turns}) == 1
        for before, turn in itertools.pairwise(turns):
            # All full blocks of the turn before: the template renders the same beginning again.
            assert turn.cached_tokens >= before.prompt_tokens - BLOCK_TOKENS
    assert len({turns[0].worker_id for turns in conversations}) == 2  # and both have some
    with capsys.disabled():
        for number in range(1, TURNS + 1):
            turns = [conversation[number - 1] for conversation in conversations]
            prompt, cached = _mean([t.prompt_tokens for t in turns]), _mean([t.cached_tokens for t in turns])
            ttft_ms = 1000 * _mean([t.ttft_s for t in turns])
            print(f"\nturn {number}: {prompt:.0f} prompt tokens, {cached:.0f} cached, TTFT {ttft_ms:.0f} ms", end="")


def _mean(values: list[int] | list[float]) -> float:
    return sum(values) / len(values)


async def test_nothing_outlives_a_killed_worker_but_its_streams(served: Served) -> None:
    """vLLM's processes go, though nobody is left to ask them; the other worker goes on with what they had begun."""
    killed, _ = served.workers
    below = descendants(killed.pid)
    assert len(below) >= 2  # the engine process and its worker

    streams = [
        await served.openai.chat.completions.create(
            model=MODEL,
            temperature=0,
            max_tokens=60,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
            messages=[user("Tell a story.")],
        )
        for _ in served.workers  # one for each
    ]
    for stream in streams:
        await anext(stream)
    assert kill_and_wait(killed.pid, below, timeout_s=2) == []
    await until_served(served.kv_routed_url, 1)
    for stream in streams:
        *_, finish, last = [chunk async for chunk in stream]
        assert finish.choices[0].finish_reason == "length"
        assert last.usage is not None
        assert last.usage.completion_tokens == 60
