"""Two frontends and their workers with a broker between them: nothing that a client sees depends on it."""

import asyncio
import signal
from pathlib import Path

import pytest

from dynamo.testing import Program
from dynamo.testing.deployment import Deployment
from dynamo.testing.nats_server import NatsServer, nats_server

from .conversations import KV, MOCKER, Conversation, Turn, hit_ratio, metrics, until_metric
from .served import MOCK, until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

WORKERS = 3


async def turns_of(conversations: list[Conversation]) -> list[Turn]:
    return [await each.turn() for each in conversations]


async def follow_history(conversations: list[Conversation], urls: list[str]) -> float:
    """Goes on with each conversation at one frontend and then at another; the hit ratio of what follows the first turn.

    The frontend that has not seen the last turn knows of it from the worker alone.
    """
    before = await turns_of(conversations)
    later: list[Turn] = []
    for url in (*urls, *urls):
        known = {each.url: await metrics(each.url) for each in conversations}
        for each in conversations:
            each.url = url
        async with asyncio.timeout(10):  # what the other one knows, this one soon knows too
            while (await metrics(url))["blocks"] < max(m["blocks"] for m in known.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        turns = await turns_of(conversations)
        assert [turn.routing.worker_id for turn in turns] == [turn.routing.worker_id for turn in before]
        later += turns
    return hit_ratio(later)


async def end(process: Program) -> None:
    """Nothing is left over that would be complained about."""
    process.signal(signal.SIGTERM)
    assert await process.exit_code() == 0
    assert "Traceback" not in process.output
    assert "destroyed" not in process.output


async def test_hit_ratio_is_that_without_a_broker(own: Deployment, tiny_model: Path, tmp_path: Path) -> None:
    """Also when the broker dies in the middle, and after it has come back."""
    async with nats_server(tmp_path, "--user", "me", "--pass", "secret") as broker:
        flags = ("--event-plane", "nats")
        environ = {"NATS_SERVER": f"nats://me:secret@{broker.address}"}
        (first, one), (second, two), (_, direct), workers = await asyncio.gather(
            own.frontend(*KV, *flags, environ=environ),
            own.frontend(*KV, *flags, environ=environ),
            own.frontend(*KV),
            own.python(
                *("-m", "dynamo.mocker", "--model-path", str(tiny_model), "--model-name", MOCK),
                *("--max-model-len", "32768", *MOCKER, "--num-workers", str(WORKERS), *flags),
                environ=environ,
            ),
        )
        for url in (one, two, direct):
            await until_served(url, WORKERS)
        for url in (one, two):
            await until_metric(url, "broadcast_feeds", WORKERS)
        assert (await metrics(direct))["broadcast_feeds"] == 0

        expected = await follow_history([Conversation(direct, f"direct {i}") for i in range(4)], [direct, direct])
        carried = [Conversation(one, f"carried {i}") for i in range(4)]
        assert await follow_history(carried, [two, one]) == pytest.approx(expected, abs=0.1)

        await broker.kill()
        for url in (one, two):
            await until_metric(url, "broadcast_feeds", 0)
        assert await follow_history(carried, [two, one]) >= expected

        await broker.start()
        for url in (one, two):
            await until_metric(url, "broadcast_feeds", WORKERS)
        assert await follow_history(carried, [two, one]) >= expected
        for url in (one, two):
            after = await metrics(url)
            assert after["event_dumps_total"] == WORKERS
            assert after["event_gaps_total"] == 0
        for process in (first, second, workers):
            await end(process)
            assert "NATS at" in process.output
            assert "secret" not in process.output


async def test_broker_that_never_comes(own: Deployment, tiny_model: Path, tmp_path: Path) -> None:
    nowhere = NatsServer(tmp_path / "log")  # not started
    flags = ("--event-plane", "nats", "--nats-server", nowhere.url)
    (frontend, url), workers = await asyncio.gather(
        own.frontend(*KV, *flags), own.mocker(tiny_model, MOCK, *MOCKER, *flags, "--num-workers", "2")
    )
    await until_served(url, 2)
    conversation = Conversation(url, "all the same")
    first, second = await conversation.turn(), await conversation.turn()
    assert second.routing.worker_id == first.routing.worker_id
    assert second.cached_tokens > 0
    await frontend.line("what it would carry goes directly")
    assert frontend.output.count("what it would carry goes directly") == 1
    for process in (frontend, workers):
        await end(process)
