"""Conversations whose every turn begins with all that was said before."""

import asyncio
import time
from dataclasses import dataclass

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

MODEL = "smollm2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What became of one turn."""

    worker_id: int
    dp_rank: int
    overlap_blocks: int  # of the prompt, that the router knew to be there
    host_blocks: int  # of those, in host memory
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    ttft_s: float
    answer: str


async def ask(openai: AsyncOpenAI, messages: list[ChatCompletionMessageParam]) -> Turn:
    started_s = time.perf_counter()
    ttft_s, text, last = 0.0, "", None
    stream = await openai.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"nvext": {"extra_fields": ["worker_id", "routing"]}},
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            ttft_s = ttft_s or time.perf_counter() - started_s
            text += chunk.choices[0].delta.content
        last = chunk
    assert last is not None
    assert last.usage is not None
    details, nvext = last.usage.prompt_tokens_details, (last.model_extra or {})["nvext"]
    worker, routing = nvext["worker_id"], nvext["routing"]
    (chosen,) = (
        candidate
        for candidate in routing["candidates"]
        if (candidate["worker_id"], candidate["dp_rank"]) == (worker["decode_worker_id"], worker["decode_dp_rank"])
    )
    return Turn(
        worker_id=worker["decode_worker_id"],
        dp_rank=worker["decode_dp_rank"],
        overlap_blocks=routing["overlap_blocks"],
        host_blocks=chosen["host_blocks"],
        prompt_tokens=last.usage.prompt_tokens,
        cached_tokens=(details.cached_tokens if details else 0) or 0,
        generated_tokens=last.usage.completion_tokens,
        ttft_s=ttft_s,
        answer=text,
    )


def question(number: int) -> ChatCompletionMessageParam:
    """Of about 370 tokens."""
    story = " ".join(f"In chapter {number}-{i} the traveller meets somebody new." for i in range(25))
    return {"role": "user", "content": f"{story} Who is it?"}


async def converse(openai: AsyncOpenAI, number: int, count: int, room: asyncio.Semaphore) -> list[Turn]:
    """`count` turns about story `number`, each asked when there is `room`."""
    messages = [question(number)]
    turns: list[Turn] = []
    for turn in range(1, count + 1):
        async with room:
            turns.append(await ask(openai, messages))
        messages.append({"role": "assistant", "content": turns[-1].answer})
        messages.append({"role": "user", "content": f"And what happens after that, in part {turn}?"})
    return turns
