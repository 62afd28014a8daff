"""Chat by the official client."""

import asyncio
from typing import Any

import pytest
from openai import BadRequestError

from .conftest import Stack
from .raw_http import events, post
from .served import ECHO, MOCK, instances

pytestmark = pytest.mark.asyncio(loop_scope="session")

HELLO: Any = [{"role": "user", "content": "Hello world"}]


async def test_unary(stack: Stack) -> None:
    answer = await stack.openai.chat.completions.create(model=MOCK, messages=HELLO, max_tokens=7)

    assert answer.object == "chat.completion"
    assert answer.model == MOCK
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7


async def test_stream(stack: Stack) -> None:
    stream = await stack.openai.chat.completions.create(model=MOCK, messages=HELLO, max_tokens=7, seed=3, stream=True)
    chunks = [chunk async for chunk in stream]

    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    first, *middle, last = (chunk.choices[0] for chunk in chunks)
    assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
    assert all(choice.delta.role is None and choice.finish_reason is None for choice in middle)
    assert last.finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks)
    whole = await stack.openai.chat.completions.create(model=MOCK, messages=HELLO, max_tokens=7, seed=3)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content


async def test_stream_on_the_wire(stack: Stack) -> None:
    body = {"model": MOCK, "messages": HELLO, "max_tokens": 2, "stream": True}
    response = await post(stack.url, "/v1/chat/completions", body)

    assert response.status == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    *chunks, done = events(response.body)
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)


async def test_usage_in_the_last_chunk(stack: Stack) -> None:
    stream = await stack.openai.chat.completions.create(
        model=MOCK, messages=HELLO, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    *others, last = [chunk async for chunk in stream]

    assert all(chunk.usage is None for chunk in others)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 5


async def test_three_choices(stack: Stack) -> None:
    answer = await stack.openai.chat.completions.create(model=MOCK, messages=HELLO, max_tokens=9, n=3, seed=1)

    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3  # each draws differently
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 27


async def test_three_choices_as_a_stream(stack: Stack) -> None:
    stream = await stack.openai.chat.completions.create(
        model=MOCK, messages=HELLO, max_tokens=9, n=3, seed=1, stream=True
    )
    texts = ["", "", ""]
    ended = []
    async for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ended.append(choice.index)

    assert sorted(ended) == [0, 1, 2]
    whole = await stack.openai.chat.completions.create(model=MOCK, messages=HELLO, max_tokens=9, n=3, seed=1)
    assert texts == [choice.message.content for choice in whole.choices]


async def test_seed_decides(stack: Stack) -> None:
    async def ask(seed: int) -> str | None:
        answer = await stack.openai.chat.completions.create(model=MOCK, messages=HELLO, max_tokens=12, seed=seed)
        return answer.choices[0].message.content

    first, second, other = await asyncio.gather(ask(5), ask(5), ask(6))  # by whichever worker
    assert first == second != other


async def test_stop_string(stack: Stack) -> None:
    whole = await stack.openai.chat.completions.create(model=ECHO, messages=HELLO)
    text = whole.choices[0].message.content
    assert text is not None
    assert "Hello world" in text

    for stream in (False, True):
        answer: Any = await stack.openai.chat.completions.create(
            model=ECHO, messages=HELLO, stop=["nowhere", "lo wor"], stream=stream
        )
        if stream:
            chunks = [chunk async for chunk in answer]
            stopped = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            stopped, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert stopped == text.partition("lo wor")[0]
        assert reason == "stop"


async def test_echo_ends_by_itself(stack: Stack) -> None:
    answer = await stack.openai.chat.completions.create(model=ECHO, messages=HELLO)

    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == answer.usage.prompt_tokens


async def test_content_parts_and_a_system_message(stack: Stack) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}]},
    ]
    answer = await stack.openai.chat.completions.create(model=ECHO, messages=messages)

    assert answer.choices[0].message.content is not None
    assert "Be brief." in answer.choices[0].message.content
    assert "Hello\n there" in answer.choices[0].message.content


async def test_text_of_every_script_comes_back_whole(stack: Stack) -> None:
    text = "Grüße, 世界! 👩‍🚀 naïve ﷽ \u202e \t"
    stream = await stack.openai.chat.completions.create(
        model=ECHO, messages=[{"role": "user", "content": text}], stream=True
    )
    assert text in "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def test_logprobs_are_refused_by_an_engine_without(stack: Stack) -> None:
    with pytest.raises(BadRequestError) as refusal:
        await stack.openai.chat.completions.create(model=MOCK, messages=HELLO, logprobs=True)

    assert refusal.value.param == "logprobs"
    assert refusal.value.code == "unsupported_feature"
    assert "logprobs" in refusal.value.message


async def test_the_response_names_its_worker(stack: Stack) -> None:
    workers = await instances(stack.url)
    wanted = {"nvext": {"extra_fields": ["worker_id"]}}
    answer: Any = await stack.openai.chat.completions.create(
        model=MOCK, messages=HELLO, max_tokens=2, extra_body=wanted
    )
    assert answer.nvext["worker_id"]["decode_worker_id"] in workers

    stream: Any = await stack.openai.chat.completions.create(
        model=MOCK, messages=HELLO, max_tokens=2, stream=True, extra_body=wanted
    )
    *others, last = [chunk async for chunk in stream]
    assert last.nvext["worker_id"]["decode_worker_id"] in workers
    assert not any(hasattr(chunk, "nvext") for chunk in others)


async def test_a_client_can_choose_its_worker(stack: Stack) -> None:
    async def served_by(extension: dict[str, Any]) -> int:
        answer: Any = await stack.openai.chat.completions.create(
            model=MOCK,
            messages=HELLO,
            max_tokens=1,
            extra_body={"nvext": {"extra_fields": ["worker_id"], **extension}},
        )
        worker: int = answer.nvext["worker_id"]["decode_worker_id"]
        return worker

    turns = [await served_by({}) for _ in range(4)]
    assert turns[:2] == turns[2:]  # the two take turns
    assert len(set(turns)) == 2
    for worker in set(turns):
        assert [await served_by({"backend_instance_id": worker}) for _ in range(3)] == [worker] * 3


async def test_a_worker_that_does_not_exist(stack: Stack) -> None:
    with pytest.raises(BadRequestError) as refusal:
        await stack.openai.chat.completions.create(
            model=MOCK, messages=HELLO, extra_body={"nvext": {"backend_instance_id": 12345}}
        )
    assert refusal.value.param == "nvext.backend_instance_id"
    assert "12345" in refusal.value.message


async def test_what_a_request_says_to_the_router(stack: Stack) -> None:
    """Routers that look for nothing of it pass it over."""
    answer: Any = await stack.openai.chat.completions.create(
        model=MOCK,
        messages=HELLO,
        max_tokens=2,
        extra_body={
            "cache_salt": "tenant-1",
            "nvext": {"agent_hints": {"priority": 2.5}, "extra_fields": ["worker_id", "routing"]},
        },
        extra_headers={"X-Dynamo-Session-ID": "conversation-7"},
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.nvext.keys() == {"worker_id"}, "taking turns needs no explanation"


@pytest.mark.parametrize(
    ("body", "headers", "param"),
    [
        ({"cache_salt": ""}, {}, "cache_salt"),
        ({"cache_salt": ["a"]}, {}, "cache_salt"),
        ({"nvext": {"agent_hints": {"priority": "high"}}}, {}, "nvext.agent_hints.priority"),
        ({"nvext": {"agent_hints": {"priority": -1_000_001}}}, {}, "nvext.agent_hints.priority"),
        ({}, {"X-Dynamo-Session-ID": "x" * 257}, "x-dynamo-session-id"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_no_router_could_take(
    stack: Stack, body: dict[str, Any], headers: dict[str, str], param: str, stream: bool
) -> None:
    with pytest.raises(BadRequestError) as refusal:
        await stack.openai.chat.completions.create(
            model=MOCK, messages=HELLO, stream=stream, extra_body=body, extra_headers=headers
        )
    assert refusal.value.param == param
    assert param in refusal.value.message
