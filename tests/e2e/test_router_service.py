"""Several frontends that ask one router service, with real processes, and what becomes of them without it."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from dynamo.testing import Program, within
from dynamo.testing.deployment import START_S, Deployment

from .conversations import ASKED, BLOCK, CHAT, KV, MOCKER, Conversation, hit_ratio, said
from .raw_http import connect, encoded, get, post
from .served import MOCK

pytestmark = pytest.mark.asyncio(loop_scope="session")

SERVICE = (*KV, "--router-service")
ROUTER = ("--system-host", "127.0.0.1", "--system-port", "0", "--model-name", MOCK)


@dataclass(slots=True, kw_only=True)
class Fleet:
    deployment: Deployment
    router: Program
    frontends: list[Program]
    urls: list[str]

    async def restart_router(self) -> None:
        self.router = await self.deployment.router(*ROUTER)

    async def figures(self) -> dict[str, float]:
        """The router's, summed over workers."""
        url = (await self.router.line("system server on ")).rpartition(" ")[2]
        found: dict[str, float] = {}
        for family in text_string_to_metric_families((await get(url, "/metrics")).body.decode()):
            for sample in family.samples:
                if sample.name.startswith("dynamo_router_"):
                    name = sample.name.removeprefix("dynamo_router_")
                    found[name] = found.get(name, 0) + sample.value
        return found

    async def until_figure(self, name: str, value: float) -> None:
        async with asyncio.timeout(10):
            while (await self.figures()).get(name) != value:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.02)


async def until_routed(url: str, workers: int = 1) -> None:
    """Waits until the frontend has heard of a router that answers and knows so many workers."""
    async with asyncio.timeout(10):
        while True:
            nvext = (await post(url, CHAT, said("?"))).json().get("nvext", {})
            if len(nvext.get("routing", {}).get("candidates", ())) == workers:
                return
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(own: Deployment, tiny_model: Path) -> AsyncIterator[Fleet]:
    """Three mockers, a router service and two frontends that ask it."""
    (one, url), (two, other_url), _, router = await asyncio.gather(
        own.frontend(*SERVICE),
        own.frontend(*SERVICE),
        own.mocker(tiny_model, MOCK, *MOCKER, "--num-workers", "3"),
        own.router(*ROUTER),
    )
    for each in (url, other_url):
        await until_routed(each, 3)
    yield Fleet(deployment=own, router=router, frontends=[one, two], urls=[url, other_url])


async def test_conversations_stay_with_their_history_through_both_frontends(fleet: Fleet) -> None:
    decisions = (await fleet.figures())["decisions_total"]
    conversations = [Conversation(fleet.urls[i % 2], f"topic {i}") for i in range(4)]
    before = [await each.turn() for each in conversations]
    for round_ in range(1, 4):
        for i, each in enumerate(conversations):
            each.url = fleet.urls[(i + round_) % 2]
        turns = [await each.turn() for each in conversations]
        for old, new in zip(before, turns, strict=True):
            assert new.routing.worker_id == old.routing.worker_id
            assert new.cached_tokens >= (old.prompt_tokens // BLOCK - 1) * BLOCK
        before = turns
    for name in ("worker_active_blocks", "worker_prefill_tokens"):
        await fleet.until_figure(name, 0)  # the router hears of the end a moment after the client
    figures = await fleet.figures()
    assert figures["decisions_total"] == decisions + 16
    assert figures["hit_ratio"] > 0.4


async def test_frontend_killed(fleet: Fleet) -> None:
    async with AsyncExitStack() as stack:
        for url in fleet.urls:
            stream = await stack.enter_async_context(connect(url))
            stream.post(CHAT, encoded(said(f"{url} " * 50, stream=True, max_tokens=20_000)))
            await stream.head()
            await anext(stream.chunks())
        busy = (await fleet.figures())["worker_active_blocks"]
        fleet.frontends[0].signal(signal.SIGKILL)
        async with asyncio.timeout(10):
            while not 0 < (await fleet.figures())["worker_active_blocks"] < busy:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
    await fleet.until_figure("worker_active_blocks", 0)


async def test_router_killed_and_started_again(fleet: Fleet) -> None:
    """Requests under way go on, those after it are served, and the hit ratio comes back with the router."""
    conversations = [Conversation(fleet.urls[i % 2], f"topic {i}") for i in range(6)]
    for each in conversations:
        await each.turn()
    before = [await each.turn() for each in conversations]
    async with connect(fleet.urls[0]) as stream:
        stream.post(CHAT, encoded(said("going on " * 50, stream=True, max_tokens=1000)))
        await stream.head()
        chunks = stream.chunks()
        await anext(chunks)
        fleet.router.signal(signal.SIGKILL)
        await fleet.router.exit_code()
        without = [await within(post(url, CHAT, said("x " * 50))) for url in fleet.urls for _ in range(3)]
        assert b"".join([chunk async for chunk in chunks]).endswith(b"data: [DONE]\n\n")
    assert [answer.status for answer in without] == [200] * 6
    assert all("routing" not in answer.json()["nvext"] for answer in without)
    await fleet.frontends[0].line("no router service")

    await fleet.restart_router()
    for url in fleet.urls:
        await until_routed(url, 3)
    after = [await each.turn() for each in conversations]
    assert [turn.routing.worker_id for turn in after] == [turn.routing.worker_id for turn in before]
    assert hit_ratio(after) >= hit_ratio(before) > 0.4
    await fleet.frontends[0].line("the router service for")


async def test_router_that_hangs(fleet: Fleet) -> None:
    """One request waits for it, the others do without; when it goes on it is asked again."""
    assert "routing" in (await post(fleet.urls[0], CHAT, said("before"))).json()["nvext"]
    fleet.router.signal(signal.SIGSTOP)
    try:
        for _ in range(4):
            answer = await within(post(fleet.urls[0], CHAT, said("during")))
            assert (answer.status, answer.json()["nvext"].keys()) == (200, {"worker_id"})
        await fleet.frontends[0].line("it does not answer")
    finally:
        fleet.router.signal(signal.SIGCONT)
    await until_routed(fleet.urls[0], 3)


async def test_router_stopped_in_order_under_load(fleet: Fleet) -> None:
    async with connect(fleet.urls[0]) as stream:
        stream.post(CHAT, encoded(said("going on " * 50, stream=True, max_tokens=20_000)))
        await stream.head()
        await anext(stream.chunks())
        fleet.router.signal(signal.SIGTERM)
        assert await within(fleet.router.exit_code()) == 0
        assert (await post(fleet.urls[0], CHAT, said("x"))).status == 200


async def test_all_workers_have_other_blocks(own: Deployment, tiny_model: Path) -> None:
    (_, url), worker, router = await asyncio.gather(
        own.frontend(*SERVICE), own.mocker(tiny_model, MOCK, *MOCKER), own.router(*ROUTER)
    )
    await until_routed(url)
    worker.signal(signal.SIGTERM)
    assert await within(worker.exit_code()) == 0
    await own.mocker(tiny_model, MOCK, "--block-size", "32", "--speedup-ratio", "20")
    await router.line("routing begins anew")
    await until_routed(url)
    conversation = Conversation(url, "other blocks")
    turns = [await conversation.turn() for _ in range(2)]
    assert [turn.routing.block_size for turn in turns] == [32, 32]
    assert turns[1].cached_tokens > 0


async def test_unknown_workers_are_refused(fleet: Fleet) -> None:
    body = said("x") | {"nvext": ASKED | {"backend_instance_id": 17}}
    refused = await post(fleet.urls[0], CHAT, body)
    assert (refused.status, refused.error()["param"]) == (400, "nvext.backend_instance_id")


async def test_router_mode_that_has_no_service(own: Deployment) -> None:
    frontend = await own.python("-m", "dynamo.frontend", "--http-port", "0", "--router-service")
    assert await within(frontend.exit_code(), START_S) == 1
    await frontend.line("--router-service needs --router-mode kv, not round-robin")
