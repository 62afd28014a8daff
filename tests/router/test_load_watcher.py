"""Workers are asked how busy they are, over a request plane."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import pytest

from dynamo.errors import OverloadedError
from dynamo.protocols.load import LOAD_ENDPOINT, WorkerLoad
from dynamo.router.load_watcher import LoadWatcher
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.codec import encode_payload
from dynamo.runtime.event_plane.base import OnMessage, Part
from dynamo.runtime.event_plane.direct import DirectPlane
from dynamo.runtime.instance import EndpointId
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted, answers

LOAD = EndpointId("test", "backend", LOAD_ENDPOINT)
INTERVAL_S = 0.05


class Plane(DirectPlane):
    """One by which a test speaks for the workers."""

    def __init__(self) -> None:
        self.tell: OnMessage | None = None

    def subscribe(self, endpoint: EndpointId, on_message: OnMessage, on_lost: Callable[[], None]) -> Part:
        assert endpoint == LOAD
        self.tell = on_message
        return super().subscribe(endpoint, on_message, on_lost)


class Loads:
    """A watcher, what it has heard, and the workers that it asks."""

    def __init__(self) -> None:
        self.runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
        self.heard: dict[int, list[list[WorkerLoad]]] = {}
        self.workers: dict[int, DistributedRuntime] = {}
        self.client = self.runtime.client(LOAD, list[WorkerLoad])
        self.others: set[int] = set()  # who serve another model
        self.rounds = 0
        self.passed_over: set[int] = set()  # as they have told
        self.told: dict[int, list[list[WorkerLoad]]] = {}
        self.plane = Plane()
        self.watcher = LoadWatcher(
            self.client,
            lambda i: i not in self.others,
            self._on_ask,
            self._on_load,
            self._on_told,
            INTERVAL_S,
            event_plane=self.plane,
        )

    async def add(self, handler: Callable[..., Any]) -> int:
        worker = DistributedRuntime(config=self.runtime.config, shared=self.runtime.shared)
        await worker.endpoint(str(LOAD)).start(handler)
        self.workers[worker.instance_id] = worker
        return worker.instance_id

    async def says(self, instance_id: int, *loads: WorkerLoad) -> None:
        """Waits until the worker was heard to say that."""
        await eventually(lambda: list(loads) in self.heard.get(instance_id, []))

    async def close(self) -> None:
        await within(self.watcher.close())
        for worker in self.workers.values():
            await worker.close(graceful=False)
        await self.runtime.close()

    def _on_ask(self, told: Collection[int]) -> None:
        self.rounds += 1
        self.passed_over |= set(told)

    def _on_load(self, instance_id: int, loads: list[WorkerLoad]) -> None:
        self.heard.setdefault(instance_id, []).append(loads)

    def _on_told(self, instance_id: int, loads: list[WorkerLoad]) -> None:
        self.told.setdefault(instance_id, []).append(loads)

    def tell(self, instance_id: int, payload: object) -> None:
        assert self.plane.tell is not None
        self.plane.tell(instance_id, encode_payload(payload))


@pytest.fixture
async def loads() -> AsyncIterator[Loads]:
    made = Loads()
    yield made
    await made.close()


async def test_each_worker_is_heard_again_and_again(loads: Loads) -> None:
    numbers = itertools.count()
    counting = await loads.add(Scripted(lambda _: [[WorkerLoad(running_requests=next(numbers))]]))
    ranks = [WorkerLoad(dp_rank=0, kv_used_blocks=3), WorkerLoad(dp_rank=1, kv_used_blocks=4)]
    parallel = await loads.add(Scripted(answers(ranks)))
    await loads.says(parallel, *ranks)
    for number in range(3):
        await loads.says(counting, WorkerLoad(running_requests=number))


async def test_who_listens_knows_when_workers_are_asked(loads: Loads) -> None:
    worker = await loads.add(Scripted(lambda _: [[WorkerLoad(running_requests=loads.rounds)]]))
    await eventually(lambda: len(loads.heard.get(worker, [])) > 3)
    rounds = [load.running_requests for answer in loads.heard[worker] for load in answer]
    assert rounds == list(range(rounds[0], rounds[0] + len(rounds)))


async def test_a_worker_that_joins_later_is_asked_too(loads: Loads) -> None:
    first = await loads.add(Scripted(answers([WorkerLoad(running_requests=1)])))
    await loads.says(first, WorkerLoad(running_requests=1))
    second = await loads.add(Scripted(answers([WorkerLoad(running_requests=2)])))
    await loads.says(second, WorkerLoad(running_requests=2))


@pytest.mark.parametrize("answer", [["nonsense"], [{"running_requests": -0.5}], [OverloadedError("no")], []])
async def test_one_that_does_not_say_is_passed_over_and_asked_again(loads: Loads, answer: list[Any]) -> None:
    strange = Scripted[Any, Any](answers(*answer))
    strange_id = await loads.add(strange)
    healthy = await loads.add(Scripted(answers([WorkerLoad(running_requests=1)])))
    await eventually(lambda: len(strange.requests) > 2)
    await loads.says(healthy, WorkerLoad(running_requests=1))
    assert strange_id not in loads.heard


async def test_one_that_hangs_holds_up_nobody(loads: Loads) -> None:
    hanging = Scripted[Any, Any](answers(), hang=True)
    await loads.add(hanging)
    healthy = await loads.add(Scripted(answers([WorkerLoad()])))
    await eventually(lambda: len(loads.heard.get(healthy, [])) > 2)
    await eventually(lambda: hanging.closed_early > 1)  # it was told that nobody listens any more


async def test_those_of_other_models_are_not_asked(loads: Loads) -> None:
    other = await loads.add(Scripted(answers([WorkerLoad()])))
    loads.others.add(other)
    ours = await loads.add(Scripted(answers([WorkerLoad()])))
    await eventually(lambda: other in loads.client.instance_ids() and len(loads.heard.get(ours, [])) > 1)
    assert other not in loads.heard


async def test_one_that_dies_is_forgotten(loads: Loads) -> None:
    dying = await loads.add(Scripted(answers([WorkerLoad()])))
    living = await loads.add(Scripted(answers([WorkerLoad()])))
    await loads.says(dying, WorkerLoad())
    await loads.workers[dying].close(graceful=False)
    await eventually(lambda: dying not in loads.client.instance_ids())
    before = len(loads.heard.get(living, []))
    await eventually(lambda: len(loads.heard.get(living, [])) > before + 1)


async def test_one_that_tells_is_not_asked(loads: Loads) -> None:
    """Until it no longer does."""
    asked = Scripted[Any, Any](answers([WorkerLoad()]))
    tells, other = await loads.add(asked), await loads.add(Scripted(answers([WorkerLoad()])))

    async def rounds(count: int) -> None:
        """Some rounds of questions, in each of which the one has told."""
        until = loads.rounds + count
        while loads.rounds < until:
            loads.tell(tells, [WorkerLoad(running_requests=7)])
            await asyncio.sleep(INTERVAL_S / 4)

    await rounds(1)
    requests = len(asked.requests)
    await rounds(4)
    assert len(asked.requests) == requests
    assert loads.told.keys() == loads.passed_over == {tells}
    assert loads.told[tells][-1] == [WorkerLoad(running_requests=7)]
    assert len(loads.heard[other]) > 3
    await eventually(lambda: len(asked.requests) > requests)


@pytest.mark.parametrize("nonsense", ["nonsense", [1], {"dp_rank": 0}])
async def test_one_that_tells_nonsense_is_asked(loads: Loads, nonsense: object) -> None:
    worker = await loads.add(Scripted(answers([WorkerLoad(running_requests=1)])))
    for _ in range(3):
        before = len(loads.heard.get(worker, []))
        loads.tell(worker, nonsense)
        await eventually(lambda: len(loads.heard.get(worker, [])) > before)  # noqa: B023 - awaited at once
    assert not loads.told


async def test_what_those_of_other_models_tell_is_nobodys_concern(loads: Loads) -> None:
    loads.others.add(17)
    loads.tell(17, [WorkerLoad()])
    assert not loads.told


async def test_one_that_told_and_went_is_forgotten(loads: Loads) -> None:
    loads.tell(18, [WorkerLoad()])
    await eventually(lambda: loads.rounds > 0)
    assert not loads.passed_over


async def test_after_a_defect_the_watcher_goes_on(
    loads: Loads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loads.watcher, "_on_load", None)
        await loads.add(Scripted(answers([WorkerLoad()])))
        await eventually(lambda: f"loads-{LOAD} was ended by a defect and begins anew" in caplog.text)
    rounds = loads.rounds
    await eventually(lambda: loads.rounds > rounds)


async def test_nothing_runs_after_the_end(loads: Loads) -> None:
    hanging = Scripted[Any, Any](answers(), hang=True)
    await loads.add(hanging)
    await eventually(lambda: hanging.open == 1)
    await within(loads.watcher.close())
    await eventually(lambda: hanging.open == 0)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("loads-")]
