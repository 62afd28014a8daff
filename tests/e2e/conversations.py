"""Conversations with simulated engines, and what the answers say of how they were routed."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from dynamo.protocols.routing import RoutingReport

from .raw_http import Response, get, post
from .served import MOCK

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
KV = ("--router-mode", "kv")
BLOCK = 16
MOCKER = ("--block-size", str(BLOCK), "--speedup-ratio", "20")
ASKED = {"extra_fields": ["worker_id", "routing"]}


@dataclass(slots=True, kw_only=True)
class Turn:
    """One answer of the conversation, and how it was routed."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    routing: RoutingReport


@dataclass(slots=True)
class Conversation:
    """Says more and more to a model; each of them something else from the first word on."""

    url: str
    topic: str
    messages: list[dict[str, str]] = field(default_factory=list)

    async def turn(self, **nvext: Any) -> Turn:
        words = f"{self.topic} " * 60
        self.messages.append({"role": "user", "content": words})
        turn = turn_of(await post(self.url, CHAT, chat(self.messages, nvext=ASKED | nvext)))
        self.messages.append({"role": "assistant", "content": turn.text})
        return turn


def chat(messages: list[dict[str, str]], **fields: Any) -> dict[str, Any]:
    return {"model": MOCK, "messages": messages, "max_tokens": 20, "ignore_eos": True} | fields


def said(text: str, **fields: Any) -> dict[str, Any]:
    return chat([{"role": "user", "content": text}], nvext=ASKED, **fields)


def turn_of(answer: Response) -> Turn:
    assert answer.status == 200, answer.body
    body = answer.json()
    routing = msgspec.convert(body["nvext"]["routing"], RoutingReport)
    assert body["nvext"]["worker_id"]["decode_worker_id"] == routing.worker_id
    return Turn(
        text=body["choices"][0]["message"]["content"],
        prompt_tokens=body["usage"]["prompt_tokens"],
        cached_tokens=body["usage"]["prompt_tokens_details"]["cached_tokens"],
        routing=routing,
    )


async def metrics(url: str) -> dict[str, float]:
    """Of the frontend's router, summed over workers."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families((await get(url, "/metrics")).body.decode()):
        for sample in family.samples:
            if sample.labels.get("model") == MOCK:
                name = sample.name.removeprefix("dynamo_router_")
                found[name] = found.get(name, 0) + sample.value
    return found


async def until_metric(url: str, name: str, value: float) -> None:
    async with asyncio.timeout(10):
        while (await metrics(url)).get(name) != value:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)


def hit_ratio(turns: list[Turn]) -> float:
    return sum(turn.cached_tokens for turn in turns) / sum(turn.prompt_tokens for turn in turns)
