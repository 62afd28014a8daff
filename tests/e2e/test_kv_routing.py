"""KV routing with real processes: conversations stay where their history is, whatever happens to the others."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec import Raw

from dynamo.llm import ModelInput, ModelType, register_model
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest
from dynamo.runtime import DistributedRuntime
from dynamo.runtime.codec import encode_payload
from dynamo.runtime.event_feed import DumpEnd, FeedEvent
from dynamo.testing import Program, eventually, within
from dynamo.testing.deployment import START_S, Deployment, deployment
from dynamo.testing.scripted import Scripted, answers
from dynamo.tokens import token_array

from .conversations import (
    ASKED,
    BLOCK,
    CHAT,
    COMPLETIONS,
    KV,
    MOCKER,
    Conversation,
    Turn,
    chat,
    hit_ratio,
    metrics,
    said,
    turn_of,
    until_metric,
)
from .raw_http import JSON_HEADERS, connect, encoded, events, post, request
from .served import ECHO, MOCK, until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")


def instance_of(worker: Program) -> int:
    found = re.search(r"backend\.generate as instance ([0-9a-f]+)", worker.output)
    assert found
    return int(found[1], 16)


async def announce_mocker(runtime: DistributedRuntime, model: Path) -> None:
    """Says that this process is a mocker like the others."""
    endpoint = runtime.endpoint("dynamo.backend.generate")
    await endpoint.start(Scripted[Any, Any](answers()))
    both = ModelType.Chat | ModelType.Completions
    await register_model(
        ModelInput.Tokens, both, endpoint, model, MOCK, context_length=32768, kv_cache_block_size=BLOCK
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    deployment: Deployment
    frontend: Program
    url: str  # of a frontend that hears events
    approximate_url: str  # of one that does not, with hard session affinity
    workers: frozenset[int]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fleet(tiny_model: Path) -> AsyncIterator[Fleet]:
    """Three mockers, an echo engine of another model, two frontends and a router of its own."""
    async with deployment() as started:
        (frontend, url), (_, approximate_url), *_ = await asyncio.gather(
            started.frontend(*KV, environ={"DYN_LOG": "info,dynamo.router=debug"}),
            started.frontend(*KV, "--no-router-kv-events", "--router-session-affinity", "hard"),
            started.echo(tiny_model, ECHO, "--delay-ms", "1"),
            started.mocker(tiny_model, MOCK, *MOCKER, "--num-workers", "3"),
            started.router(),
        )
        everybody = await until_served(url, 4)
        await until_served(approximate_url, 4)
        workers = frozenset(
            candidate.worker_id for candidate in (await Conversation(url, "?").turn()).routing.candidates
        )
        assert len(workers & set(everybody)) == 3
        yield Fleet(deployment=started, frontend=frontend, url=url, approximate_url=approximate_url, workers=workers)


@pytest.mark.parametrize("mode", ["events", "approximate"])
async def test_conversations_stay_with_their_history(fleet: Fleet, mode: str) -> None:
    url = fleet.url if mode == "events" else fleet.approximate_url
    conversations = [Conversation(url, f"{mode} {i}") for i in range(4)]
    before = [await each.turn() for each in conversations]
    for turn in before:
        assert turn.routing.overlap_blocks == turn.cached_tokens == 0
        assert turn.routing.no_overlap_reason
    for _ in range(2):
        turns = [await each.turn() for each in conversations]
        for old, new in zip(before, turns, strict=True):
            assert new.routing.worker_id == old.routing.worker_id
            assert new.cached_tokens >= (old.prompt_tokens // BLOCK - 1) * BLOCK
            assert new.routing.overlap_blocks >= old.prompt_tokens // BLOCK - 1
            assert new.routing.no_overlap_reason is None
            costs = {candidate.worker_id: candidate.cost for candidate in new.routing.candidates}
            assert costs.keys() == fleet.workers
            assert min(costs, key=costs.__getitem__) == new.routing.worker_id
        before = turns


async def test_routing_in_a_stream_and_in_the_log(fleet: Fleet) -> None:
    streamed = await post(fleet.url, CHAT, said("streamed " * 50, stream=True))
    [routing] = [
        event["nvext"]["routing"] for event in events(streamed.body)[:-1] if "routing" in event.get("nvext", {})
    ]
    assert {candidate["worker_id"] for candidate in routing["candidates"]} == fleet.workers
    await fleet.frontend.line("no_overlap_reason=")


async def test_model_without_blocks_in_the_same_frontend(fleet: Fleet) -> None:
    body = {"model": ECHO, "prompt": "Hello", "max_tokens": 100, "nvext": ASKED}
    answer = (await post(fleet.url, COMPLETIONS, body)).json()
    assert answer["choices"][0]["text"] == "Hello"
    assert answer["nvext"].keys() == {"worker_id"}
    await fleet.frontend.line(f"{ECHO!r} has no KV blocks that its workers tell of")


async def test_named_workers(fleet: Fleet) -> None:
    conversation = Conversation(fleet.url, "named")
    first = await conversation.turn()
    other = next(iter(fleet.workers - {first.routing.worker_id}))
    moved = await conversation.turn(backend_instance_id=other)
    assert (moved.routing.worker_id, moved.cached_tokens) == (other, 0)
    for unknown in (17, next(iter(await echo_instances(fleet)))):
        body = said("x") | {"nvext": {"backend_instance_id": unknown}}
        refused = await post(fleet.url, CHAT, body)
        assert (refused.status, refused.error()["param"]) == (400, "nvext.backend_instance_id")


async def echo_instances(fleet: Fleet) -> set[int]:
    return set(await until_served(fleet.url, 4)) - fleet.workers


async def test_salts_are_apart(fleet: Fleet) -> None:
    text = "salted " * 50
    salted = turn_of(await post(fleet.url, CHAT, said(text, cache_salt="mine")))
    plain = turn_of(await post(fleet.url, CHAT, said(text)))
    assert plain.cached_tokens == plain.routing.overlap_blocks == 0
    again = turn_of(await post(fleet.url, CHAT, said(text, cache_salt="mine")))
    assert again.routing.worker_id == salted.routing.worker_id
    assert again.cached_tokens > 0


@pytest.mark.parametrize("affinity", ["soft", "hard"])
async def test_sessions(fleet: Fleet, affinity: str) -> None:
    """What is unlike everything before goes to the session's worker; if that has too many, only with hard affinity."""
    url = fleet.url if affinity == "soft" else fleet.approximate_url
    headers = JSON_HEADERS | {"X-Dynamo-Session-ID": f"session {affinity}"}

    async def ask(text: str) -> Turn:
        return turn_of(await request(url, "POST", CHAT, said(text), headers))

    turns = [await ask(f"{affinity}{i} " * 20) for i in range(6)]
    [worker] = {turn.routing.worker_id for turn in turns}
    async with AsyncExitStack() as stack:
        for i in range(12):  # more than half as many again as the mean of three workers, and four
            busy = await stack.enter_async_context(connect(url))
            long = said(f"busy {affinity} {i} " * 10, stream=True, max_tokens=20_000)
            long["nvext"] = ASKED | {"backend_instance_id": worker}
            busy.post(CHAT, encoded(long))
            await busy.head()
            await anext(busy.chunks())
        later = [await ask(f"{affinity} later {i} " * 20) for i in range(3)]
    assert ({turn.routing.worker_id for turn in later} == {worker}) == (affinity == "hard")


async def test_metrics(fleet: Fleet) -> None:
    before = await metrics(fleet.url)
    conversation = Conversation(fleet.url, "measured")
    turns = [await conversation.turn() for _ in range(2)]
    after = await metrics(fleet.url)

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown("decisions_total") == grown("decision_seconds_count") == grown("queue_wait_seconds_count") == 2
    assert grown("prompt_tokens_total") == sum(turn.prompt_tokens for turn in turns)
    assert grown("cached_tokens_total") == sum(turn.cached_tokens for turn in turns) > 0
    assert grown("overlap_tokens_total") == sum(turn.routing.overlap_blocks for turn in turns) * BLOCK
    assert grown("chosen_cost_blocks_total") < grown("mean_cost_blocks_total")
    assert after["hit_ratio"] == pytest.approx(after["cached_tokens_total"] / after["prompt_tokens_total"])
    assert after["blocks"] > 0
    assert after["events_total"] > 0
    assert {
        "event_gaps_total",
        "event_recoveries_total",
        "pruned_blocks_total",
        "malformed_events_total",
    } <= after.keys()
    assert after["queued_requests"] == 0
    async with asyncio.timeout(START_S):  # workers tell their loads now and then, in the midst of a prompt too
        while (await metrics(fleet.url))["worker_prefill_tokens"]:
            pass


async def test_router_as_a_service(fleet: Fleet) -> None:
    """Asked by a program that knows nothing but endpoints."""
    prompt = list(range(3, 200))
    runtime = fleet.deployment.runtime()

    async def ask(endpoint: str, asked: Any) -> list[Any]:
        client = await runtime.endpoint(f"dynamo.router.{endpoint}").client()
        await client.wait_for_instances(START_S)
        return [item async for item in await client.generate(asked, annotated=False)]

    async def tokens_to_prefill() -> dict[int, int]:
        [loads] = await ask("get_potential_loads", {"token_ids": prompt})
        return {load["worker_id"]: load["potential_prefill_tokens"] for load in loads}

    try:
        first, *_ = await ask(
            "generate", {"model": MOCK, "token_ids": prompt, "stop_conditions": {"max_tokens": 3, "ignore_eos": True}}
        )
        worker, _ = first["worker_id"]
        assert worker in fleet.workers
        [report] = await ask("best_worker", {"token_ids": prompt, "request_id": "mine"})
        assert (report["worker_id"], report["overlap_blocks"]) == (worker, len(prompt) // BLOCK)
        uncached = len(prompt) % BLOCK
        for ours in (uncached, 0):
            expected = dict.fromkeys(fleet.workers, len(prompt)) | {worker: uncached + ours}
            async with asyncio.timeout(10):  # what workers say they have of other tests' requests is a second old
                while await tokens_to_prefill() != expected:  # noqa: ASYNC110 - another process's state
                    await asyncio.sleep(0.02)
            await ask("free", {"request_id": "mine"})
    finally:
        await runtime.close()


async def test_worker_that_talks_nonsense(fleet: Fleet, tiny_model: Path) -> None:
    conversation = Conversation(fleet.url, "undisturbed")
    first = await conversation.turn()
    nonsense = [[0, [[0, b"123"]]], [0, [[7, b""]]], "?", [-1, [[2]]], [10**9, [[2]]]]
    items = [DumpEnd(0, 0), *(FeedEvent(i, Raw(encode_payload(n))) for i, n in enumerate(nonsense, 1))]
    runtime = fleet.deployment.runtime()
    try:
        await runtime.endpoint("dynamo.backend.kv_events").start(Scripted[Any, Any](answers(*items), hang=True))
        await announce_mocker(runtime, tiny_model)
        warning = await fleet.frontend.line("sends KV events that make no sense")
        assert f"instance {runtime.instance_id:x} " in warning
        await until_metric(fleet.url, "malformed_events_total", len(nonsense))
        second = await conversation.turn()
        assert (second.routing.worker_id, second.cached_tokens > 0) == (first.routing.worker_id, True)
    finally:
        await runtime.close(graceful=False)


async def test_worker_with_other_blocks_is_refused(own: Deployment, tiny_model: Path) -> None:
    (frontend, url), good = await asyncio.gather(own.frontend(*KV), own.mocker(tiny_model, MOCK, *MOCKER))
    await until_served(url, 1)
    other = await own.mocker(tiny_model, MOCK, "--block-size", "32")
    refusal = await frontend.line("gets no requests")
    assert f"instance {instance_of(other):x} " in refusal
    assert "KV block size 32, not 16" in refusal
    turns = [await Conversation(url, f"t{i}").turn() for i in range(4)]
    assert {turn.routing.worker_id for turn in turns} == {instance_of(good)}
    refused = await post(url, CHAT, said("x") | {"nvext": {"backend_instance_id": instance_of(other)}})
    assert refused.status == 400


async def test_worker_killed_in_mid_stream(own: Deployment, tiny_model: Path) -> None:
    (_, url), *workers = await asyncio.gather(
        own.frontend(*KV), own.mocker(tiny_model, MOCK, *MOCKER), own.mocker(tiny_model, MOCK, *MOCKER)
    )
    await until_served(url, 2)
    conversation = Conversation(url, "survives")
    first, second = await conversation.turn(), await conversation.turn()
    assert second.routing.worker_id == first.routing.worker_id
    [victim] = [worker for worker in workers if instance_of(worker) == first.routing.worker_id]
    async with connect(url) as stream:
        named = {"backend_instance_id": first.routing.worker_id}  # else the other worker would go on with it
        stream.post(CHAT, encoded(chat([*conversation.messages], stream=True, max_tokens=20_000, nvext=named)))
        await stream.head()
        await anext(stream.chunks())
        victim.signal(signal.SIGKILL)
        *_, last = events(b"".join([chunk async for chunk in stream.chunks()]))
        assert last["error"]["code"] == "worker_connection_lost"
    third = await conversation.turn()
    assert third.routing.worker_id != first.routing.worker_id
    assert third.cached_tokens == 0
    fourth = await conversation.turn()
    assert fourth.routing.worker_id == third.routing.worker_id
    assert fourth.cached_tokens >= third.prompt_tokens - 2 * BLOCK
    await until_served(url, 1)
    fifth = await conversation.turn()
    assert [candidate.worker_id for candidate in fifth.routing.candidates] == [third.routing.worker_id]
    assert (await metrics(url))["blocks"] <= (fifth.prompt_tokens + 100) / BLOCK  # one copy of all that is left


async def test_frontend_killed_under_load_catches_up_by_a_dump(own: Deployment, tiny_model: Path) -> None:
    (frontend, url), _ = await asyncio.gather(
        own.frontend(*KV), own.mocker(tiny_model, MOCK, *MOCKER, "--num-workers", "2")
    )
    await until_served(url, 2)
    conversations = [Conversation(url, f"long {i}") for i in range(6)]
    for each in conversations:
        await each.turn()
    before = [await each.turn() for each in conversations]
    async with connect(url) as stream:
        stream.post(CHAT, encoded(said("x " * 100, stream=True, max_tokens=20_000)))
        await stream.head()
        known = (await metrics(url))["blocks"]
        frontend.signal(signal.SIGKILL)
        await frontend.exit_code()

    _, url = await own.frontend(*KV)
    await until_served(url, 2)
    async with asyncio.timeout(10):
        while (caught_up := await metrics(url)).get("blocks", 0) < known:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)
    assert caught_up["decisions_total"] == 0
    for each in conversations:
        each.url = url
    after = [await each.turn() for each in conversations]
    assert [turn.routing.worker_id for turn in after] == [turn.routing.worker_id for turn in before]
    assert hit_ratio(after) >= hit_ratio(before) > 0.4


async def test_frontends_share_their_load(own: Deployment, tiny_model: Path) -> None:
    flags = (*KV, "--router-replica-sync")
    (first, one), (_, two), _ = await asyncio.gather(
        own.frontend(*flags), own.frontend(*flags), own.mocker(tiny_model, MOCK, *MOCKER, "--num-workers", "2")
    )
    worker, _ = await until_served(one, 2)
    await until_served(two, 2)
    async with connect(one) as stream:
        long = said("shared " * 100, stream=True, max_tokens=20_000) | {"nvext": {"backend_instance_id": worker}}
        stream.post(CHAT, encoded(long))
        await stream.head()
        blocks = 100 // BLOCK
        async with asyncio.timeout(10):
            while (await metrics(two))["worker_active_blocks"] < blocks:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.02)
        turn = await Conversation(two, "avoids it").turn()
        assert turn.routing.worker_id != worker
        first.signal(signal.SIGKILL)
        await until_metric(two, "worker_active_blocks", 0)


async def test_requests_that_come_past_the_router(own: Deployment, tiny_model: Path) -> None:
    """Another program calls a worker directly: first with what is decoded for long, then with a prompt that is long."""
    slow = ("--speedup-ratio", "0.05", "--max-num-batched-tokens", "64", "--max-num-seqs", "8")
    (_, url), _ = await asyncio.gather(
        own.frontend(*KV), own.mocker(tiny_model, MOCK, *MOCKER, *slow, "--num-workers", "2")
    )
    worker, _ = await until_served(url, 2)
    runtime = own.runtime()
    try:
        client = await runtime.endpoint("dynamo.backend.generate").client(response_type=LLMEngineOutput)
        await eventually(lambda: worker in client.instance_ids())
        async with AsyncExitStack() as stack:

            async def call(tokens: int) -> AsyncIterator[LLMEngineOutput]:
                asked = PreprocessedRequest(model=MOCK, token_ids=token_array([7] * tokens))
                answer: Any = await client.direct(asked, worker, annotated=False)
                return await stack.enter_async_context(aclosing(answer))

            await within(anext(await call(40)))
            await until_metric(url, "worker_foreign_requests", 1)
            assert (await metrics(url))["worker_foreign_prefill_tokens"] == 0
            await call(4000)
            await until_metric(url, "worker_foreign_prefill_tokens", 4000)
            after = await metrics(url)
            assert after["worker_foreign_requests"] == 2
            assert after["worker_prefill_tokens"] == 4000
            assert after["worker_active_blocks"] == after["worker_foreign_blocks"] > 0
            turn = turn_of(await post(url, CHAT, said("avoids it", max_tokens=1)))
            assert turn.routing.worker_id != worker
            busy = next(each for each in turn.routing.candidates if each.worker_id == worker)
            assert busy.prefill_tokens == 4000
        await until_metric(url, "worker_foreign_requests", 0)
        assert (await metrics(url))["worker_foreign_prefill_tokens"] == 0
    finally:
        await runtime.close()


async def test_queue(own: Deployment, tiny_model: Path) -> None:
    slow = ("--speedup-ratio", "0.05", "--max-num-batched-tokens", "64", "--max-num-seqs", "64")
    limits = ("--router-queue-threshold", "0.5", "--router-queue-size", "1")
    (_, url), _ = await asyncio.gather(
        own.frontend(*KV, *limits),
        own.mocker(tiny_model, MOCK, *MOCKER, *slow),
    )
    await until_served(url, 1)
    body = encoded(said("word " * 200, max_tokens=1))
    async with connect(url) as served, connect(url) as waiting:
        served.post(CHAT, body)
        await until_metric(url, "decisions_total", 1)
        waiting.post(CHAT, body)
        await until_metric(url, "queued_requests", 1)
        refused = await post(url, CHAT, body)
        assert refused.status == 503
        assert "retry-after" in refused.headers
        waiting.reset()
        await until_metric(url, "queued_requests", 0)
    await until_metric(url, "worker_active_blocks", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ended_frontend_and_router_leave_nothing(
    own: Deployment, tiny_model: Path, number: signal.Signals
) -> None:
    flags = ("--router-replica-sync", "--router-queue-threshold", "2")
    (frontend, url), router, mocker = await asyncio.gather(
        own.frontend(*KV, *flags), own.router(*flags), own.mocker(tiny_model, MOCK, *MOCKER)
    )
    await until_served(url, 1)
    await Conversation(url, "last").turn()
    for process in (frontend, router, mocker):
        process.signal(number)
        assert await process.exit_code() == 0
        assert "Traceback" not in process.output
        assert "Task was destroyed" not in process.output
    assert not list(own.discovery.iterdir())


async def test_router_before_any_worker(own: Deployment, tiny_model: Path) -> None:
    router = await own.python("-m", "dynamo.router")
    await router.line("waiting for workers at dynamo.backend.generate", START_S)
    router.signal(signal.SIGINT)
    assert await within(router.exit_code()) == 0
    assert "Traceback" not in router.output
