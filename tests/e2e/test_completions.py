"""Completions by the official client."""

import asyncio
from typing import Any

import pytest
from openai import BadRequestError

from .conftest import Stack
from .raw_http import events, post
from .served import ECHO, MOCK

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_unary(stack: Stack) -> None:
    answer = await stack.openai.completions.create(model=MOCK, prompt="Hello", max_tokens=4)

    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


async def test_stream(stack: Stack) -> None:
    stream = await stack.openai.completions.create(
        model=MOCK, prompt="Hello", max_tokens=4, seed=1, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]

    *earlier, reason = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reason == "length"
    assert not any(earlier)  # there may be none: tokens that arrive together share a chunk
    assert last.usage is not None
    assert last.usage.completion_tokens == 4
    whole = await stack.openai.completions.create(model=MOCK, prompt="Hello", max_tokens=4, seed=1)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


async def test_stream_on_the_wire(stack: Stack) -> None:
    response = await post(stack.url, "/v1/completions", {"model": ECHO, "prompt": "Hello", "stream": True})

    *chunks, done = events(response.body)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello"


async def test_several_prompts_with_several_choices(stack: Stack) -> None:
    answer = await stack.openai.completions.create(model=MOCK, prompt=["Hello", "world"], n=2, max_tokens=6, seed=9)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = await stack.openai.completions.create(model=MOCK, prompt="world", n=2, max_tokens=6, seed=9)
    assert [c.text for c in answer.choices[2:]] == [c.text for c in alone.choices]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24


async def test_many_at_once_are_not_mixed_up(stack: Stack) -> None:
    async def streamed(seed: int) -> str:
        options: Any = {"model": MOCK, "prompt": f"number {seed}", "max_tokens": 60, "seed": seed, "stream": True}
        return "".join([chunk.choices[0].text async for chunk in await stack.openai.completions.create(**options)])

    async def echoed(text: str) -> str:
        answer = await stack.openai.completions.create(model=ECHO, prompt=text)
        return answer.choices[0].text

    texts = [f"text number {i} " * 4 for i in range(40)]
    together = await asyncio.gather(*map(streamed, range(40)), *map(echoed, texts))
    assert together[40:] == texts
    assert together[:40] == [await streamed(seed) for seed in range(40)]
    assert len(set(together[:40])) > 10


async def test_token_ids(stack: Stack) -> None:
    answer = await stack.openai.completions.create(model=ECHO, prompt=[300, 301, 302])
    lists = await stack.openai.completions.create(model=ECHO, prompt=[[300, 301, 302], [303]])

    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert lists.choices[0].text == answer.choices[0].text != ""
    assert lists.usage is not None
    assert lists.usage.prompt_tokens == 4


async def test_echo_repeats_the_prompt(stack: Stack) -> None:
    answer = await stack.openai.completions.create(model=ECHO, prompt="Hello", echo=True)
    assert answer.choices[0].text == "HelloHello"

    only = await stack.openai.completions.create(model=ECHO, prompt="Hello", echo=True, max_tokens=0)
    assert only.choices[0].text == "Hello"
    assert only.choices[0].finish_reason == "length"
    assert only.usage is not None
    assert only.usage.completion_tokens == 0


async def test_stop_strings(stack: Stack) -> None:
    prompt = "The quick brown fox"
    assert await _text(stack, prompt, stop="brown") == ("The quick ", "stop")
    assert await _text(stack, prompt, stop=["x", "own"]) == ("The quick br", "stop")
    assert await _text(stack, prompt, stop="lazy") == (prompt, "stop")  # the end of the echo


async def test_max_tokens(stack: Stack) -> None:
    text, reason = await _text(stack, "The quick brown fox", max_tokens=2)
    assert "The quick brown fox".startswith(text)
    assert reason == "length"


async def test_min_tokens_and_ignore_eos(stack: Stack) -> None:
    body = {"min_tokens": 40, "ignore_eos": True}
    answer = await stack.openai.completions.create(model=MOCK, prompt="Hello", max_tokens=40, extra_body=body)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 40


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", 2),
        ("suffix", "end"),
        ("best_of", 3),
        ("logit_bias", {"5": 1}),
        ("response_format", {"type": "json_object"}),
    ],
)
async def test_what_the_mocker_cannot_do_is_refused(stack: Stack, field: str, value: Any) -> None:
    with pytest.raises(BadRequestError) as refusal:
        await stack.openai.completions.create(model=MOCK, prompt="Hello", extra_body={field: value})

    assert refusal.value.param == field
    assert field in refusal.value.message


async def test_what_changes_nothing_is_accepted(stack: Stack) -> None:
    answer = await stack.openai.completions.create(
        model=MOCK,
        prompt="Hello",
        max_tokens=1,
        user="me",
        best_of=1,
        extra_body={"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "no_such_field": [1]},
    )
    assert answer.choices


async def _text(stack: Stack, prompt: str, **options: Any) -> tuple[str, str]:
    answer = await stack.openai.completions.create(model=ECHO, prompt=prompt, **options)
    return answer.choices[0].text, answer.choices[0].finish_reason
