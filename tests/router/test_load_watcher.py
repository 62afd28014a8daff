"""Workers are asked how busy they are; those that do not say hold up nobody."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from dynamo.protocols.load import LOAD_ENDPOINT, WorkerLoad
from dynamo.router import load_watcher
from dynamo.router.load_watcher import LoadWatcher
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted, answers

ENDPOINT = f"test.backend.{LOAD_ENDPOINT}"
LOADS = [WorkerLoad(running_requests=2, kv_used_blocks=7), WorkerLoad(dp_rank=1)]


@dataclass(slots=True)
class Watched:
    runtime: DistributedRuntime
    watcher: LoadWatcher
    seen: dict[int, list[list[WorkerLoad]]] = field(default_factory=dict)

    async def worker(self, *items: Any, hang: bool = False) -> tuple[int, Scripted[Any, Any]]:
        runtime = self.runtime.sibling()
        load = Scripted[Any, Any](answers(*items), hang=hang)
        await runtime.endpoint(ENDPOINT).start(load)
        return runtime.instance_id, load


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr(load_watcher, "_TIMEOUT_S", 0.02)
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    client = await runtime.endpoint(ENDPOINT).client(response_type=list[WorkerLoad])
    seen: dict[int, list[list[WorkerLoad]]] = {}
    watcher = LoadWatcher(client, lambda instance_id, loads: seen.setdefault(instance_id, []).append(loads), 0.005)
    yield Watched(runtime, watcher, seen)
    await within(watcher.close())
    await within(runtime.close(graceful=False))


async def test_everybody_is_asked_again_and_again(watched: Watched) -> None:
    workers = [await watched.worker(LOADS) for _ in range(2)]
    await eventually(lambda: len(watched.seen) == 2 and all(len(loads) > 2 for loads in watched.seen.values()))
    assert watched.seen[workers[0][0]][0] == LOADS


@pytest.mark.parametrize(
    "items", [["?"], [[{"kv_used_blocks": "many"}]], [RuntimeError("it trips")], [5, LOADS]], ids=str
)
async def test_nonsense_and_failures_are_passed_over(watched: Watched, items: list[Any]) -> None:
    broken, load = await watched.worker(*items)
    good, _ = await watched.worker(LOADS)
    await eventually(lambda: len(load.requests) > 2 and len(watched.seen.get(good, [])) > 2)
    assert broken not in watched.seen


async def test_one_that_does_not_answer_is_given_up(watched: Watched) -> None:
    silent, load = await watched.worker(hang=True)
    good, _ = await watched.worker(LOADS)
    await eventually(lambda: len(load.requests) > 2 and len(watched.seen.get(good, [])) > 2)
    assert silent not in watched.seen
    assert load.open <= 2  # questions without an answer do not pile up


async def test_closing_ends_the_questions(watched: Watched) -> None:
    _, load = await watched.worker(hang=True)
    await eventually(lambda: load.open == 1)
    await within(watched.watcher.close())
    await eventually(lambda: load.open == 0)
    assert not any(task.get_name().startswith("loads-") for task in asyncio.all_tasks())
