"""What the clients ask, and the answers of an undisturbed run, which any other must give too."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.e2e.raw_http import events

from .client import ask

MODEL = "m"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_AT_ONCE = 8


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """All that must not depend on what happens on the way."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request and its answer."""

    path: str
    body: dict[str, Any]
    expected: Answer


async def questions(url: str, seed: int, number: int) -> Sequence[Question]:
    """Different ones, with the answers that the fleet behind `url` gives while nobody disturbs it."""
    rng = random.Random(seed)
    bodies = [_body(rng, i) for i in range(number)]
    asking = asyncio.Semaphore(_AT_ONCE)

    async def answered(path: str, body: dict[str, Any]) -> Question:
        async with asking:
            answer = read(await ask(url, path, body))
        if rng.random() < 0.25 and len(answer.text) > 40:  # some end by a stop string
            begin = len(answer.text) * 2 // 3
            stopping = body | {"stop": [answer.text[begin : begin + 3]]}
            async with asking:
                return Question(path=path, body=stopping, expected=read(await ask(url, path, stopping)))
        return Question(path=path, body=body, expected=answer)

    return await asyncio.gather(*(answered(path, body) for path, body in bodies))


def read(body: bytes) -> Answer:
    """Of a streamed answer; ValueError says what is wrong with it."""
    *chunks, done = events(body)
    if done != "[DONE]":
        raise ValueError(f"the stream ended with {done}")
    text, finish_reason, usage = "", None, None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            if finish_reason is not None:
                raise ValueError(f"after the end came {choice}")
            text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            finish_reason = choice["finish_reason"]
    if finish_reason is None or usage is None:
        raise ValueError(f"no end: {chunks[-1]}")
    return Answer(
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
    )


def _body(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
    text = f"Question {number}: " + " ".join(rng.choices(("what", "who", "where", "why", "how"), k=rng.randint(5, 300)))
    body: dict[str, Any] = {
        "model": MODEL,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": rng.randint(10, 400),
        "ignore_eos": rng.random() < 0.8,
    }
    if rng.random() < 0.3:
        body |= {"seed": rng.randrange(1000), "temperature": 1.0}
    if rng.random() < 0.5:
        return CHAT, body | {"messages": [{"role": "user", "content": text}]}
    return COMPLETIONS, body | {"prompt": text}
