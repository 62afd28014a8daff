"""Which models a frontend can serve, as workers come and go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamo.errors import ConfigError, ModelNotFoundError, NoInstancesError
from dynamo.llm.model_manager import ModelManager
from dynamo.llm.sequence import TextOutput
from dynamo.llm.served_model import ServedModel
from dynamo.protocols.openai import decode_completion
from dynamo.runtime import Context, DistributedRuntime, RuntimeConfig
from dynamo.runtime.stage import Deliver
from dynamo.testing import eventually, within
from dynamo.testing.stages import Reading, reading

from .deployed import Deployed, answer, until_models


async def test_nothing_yet(manager: ModelManager) -> None:
    assert manager.models() == []
    with pytest.raises(NoInstancesError, match="no worker is up yet"):
        manager.get("m")


async def test_workers_come_and_go(fleet: Deployed, manager: ModelManager, tiny: Path) -> None:
    first = await fleet.serve("b", tiny)
    await until_models(manager, {"b": 1})
    served = manager.get("b")
    second = await fleet.serve("b", tiny)
    await fleet.serve("a", tiny)
    await until_models(manager, {"a": 1, "b": 2})
    assert [model.card.name for model in manager.models()] == ["a", "b"]
    assert manager.get("b") is served  # the same path, with one worker more

    await first.close()
    await until_models(manager, {"a": 1, "b": 1})
    await second.close()
    await until_models(manager, {"a": 1})
    with pytest.raises(NoInstancesError, match="'b'"):
        manager.get("b")
    with pytest.raises(ModelNotFoundError, match="there is: a") as raised:
        manager.get("c")
    assert raised.value.param == "model"

    await fleet.serve("b", tiny)
    await until_models(manager, {"a": 1, "b": 1})


async def test_models_that_are_not_for_everybody(fleet: Deployed, manager: ModelManager, tiny: Path) -> None:
    for name in ("a", "b"):
        await fleet.serve(name, tiny)
    await until_models(manager, {"a": 1, "b": 1})
    assert manager.get("a", {"a", "c"}.__contains__) is manager.get("a")
    for name in ("b", "x"):
        with pytest.raises(ModelNotFoundError, match=f"the model '{name}' does not exist, or is not for you"):
            manager.get(name, {"a"}.__contains__)
    with pytest.raises(ModelNotFoundError, match=r"there is: a$"):
        manager.get("c", {"a", "c"}.__contains__)


async def test_worker_that_was_there_before(fleet: Deployed, tiny: Path) -> None:
    await fleet.serve("m", tiny)
    manager = fleet.manager()
    async with manager.following():
        await until_models(manager, {"m": 1})


async def test_unknown_model_when_all_workers_are_gone(fleet: Deployed, manager: ModelManager, tiny: Path) -> None:
    worker = await fleet.serve("m", tiny)
    await until_models(manager, {"m": 1})
    await worker.close()
    await until_models(manager, {})
    with pytest.raises(NoInstancesError):
        manager.get("m")
    with pytest.raises(ModelNotFoundError, match="there is: none right now"):
        manager.get("x")


async def test_model_before_its_worker_serves_the_endpoint(fleet: Deployed, manager: ModelManager, tiny: Path) -> None:
    """In upstream's programs register_model comes first."""
    worker = fleet.new_worker()
    await fleet.announce(worker, "m", tiny)
    await eventually(lambda: "m" in manager._slots and manager._slots["m"].served is not None)
    with pytest.raises(NoInstancesError):
        manager.get("m")
    await worker.endpoint("ns.backend.generate").start(answer)
    await until_models(manager, {"m": 1})


async def test_only_a_namespace(fleet: Deployed, tiny: Path) -> None:
    manager = fleet.manager("mine")
    async with manager.following():
        await fleet.serve("theirs", tiny, path="others.backend.generate")
        await fleet.serve("similar", tiny, path="mine2.backend.generate")
        await fleet.serve("mine", tiny, path="mine.backend.generate")
        await until_models(manager, {"mine": 1})


async def test_several_models_at_one_endpoint(fleet: Deployed, manager: ModelManager, tiny: Path, other: Path) -> None:
    both = await fleet.serve("a", tiny)
    await fleet.announce(both, "b", other)
    await fleet.serve("b", other)
    await until_models(manager, {"a": 1, "b": 2})
    assert [i.instance_id for i in manager.get("a").instances()] == [both.instance_id]


async def test_entry_that_cannot_be_read(
    fleet: Deployed, manager: ModelManager, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fleet.new_worker().register("models/ns/strange", b"not JSON")
    await fleet.serve("m", tiny)
    await until_models(manager, {"m": 1})
    assert "models/ns/strange" in caplog.text


async def test_names_are_not_remembered_without_end(fleet: Deployed, manager: ModelManager, tiny: Path) -> None:
    manager._gone = dict.fromkeys(f"m{i}" for i in range(1024))
    worker = await fleet.serve("last", tiny)
    await until_models(manager, {"last": 1})
    await worker.close()
    await until_models(manager, {})
    assert len(manager._gone) == 1024
    with pytest.raises(NoInstancesError):
        manager.get("last")
    with pytest.raises(ModelNotFoundError):
        manager.get("m0")


async def test_discovery_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    runtime = DistributedRuntime(config=RuntimeConfig(file_kv=str(tmp_path / "file")))
    manager = Deployed(runtime).manager()
    with pytest.raises(ConfigError, match="discovery directory"):
        async with manager.following():
            pytest.fail("it must not begin")
    await runtime.close()


async def test_defect_ends_the_follower_visibly(fleet: Deployed, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dynamo.llm.model_slot.ModelSlot.add", broken)
    async with fleet.manager().following() as follower:
        await fleet.serve("m", tiny)
        with pytest.raises(ZeroDivisionError):
            await within(follower)


async def test_end_while_a_model_is_being_closed(fleet: Deployed, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    """As when everything is stopped at once: what has been begun is ended by whoever ends the manager."""
    closing, close = asyncio.Event(), ServedModel.close

    async def interrupted(served: ServedModel) -> None:
        if not closing.is_set():
            closing.set()
            await asyncio.get_running_loop().create_future()
        await close(served)

    monkeypatch.setattr(ServedModel, "close", interrupted)

    async def follow() -> None:
        manager = fleet.manager()
        async with manager.following():
            worker = await fleet.serve("m", tiny)
            await until_models(manager, {"m": 1})
            await worker.close()
            await closing.wait()

    await within(follow())
    assert not any(task.get_name() == "client-ns.backend.generate" for task in asyncio.all_tasks())


async def test_requests_under_way_outlive_their_model(fleet: Deployed, manager: ModelManager, tiny: Path) -> None:
    """A worker that comes in time takes them over; otherwise the model is closed after the last one."""
    worker = await fleet.serve("m", tiny, handler=hang)
    await until_models(manager, {"m": 1})
    served = manager.get("m")
    async with asking(served) as request:
        await worker.close(graceful=False)
        await until_models(manager, {})
        await eventually(lambda: manager._slots["m"].empty)
        with pytest.raises(NoInstancesError):
            manager.get("m")

        await fleet.serve("m", tiny)
        await until_models(manager, {"m": 1})
        assert manager.get("m") is served
        assert (await request.end())[-1].finish_reason == "stop"


async def test_model_is_closed_after_its_last_request(fleet: Deployed, manager: ModelManager, tiny: Path) -> None:
    worker = await fleet.serve("m", tiny, handler=hang)
    await until_models(manager, {"m": 1})
    async with asking(manager.get("m")):
        await worker.close(graceful=False)
        await eventually(lambda: "m" in manager._slots and manager._slots["m"].empty)
    await eventually(lambda: not manager._slots and not manager._leaving)
    assert not any(task.get_name() == "client-ns.backend.generate" for task in asyncio.all_tasks())
    await fleet.serve("m", tiny)
    await until_models(manager, {"m": 1})


async def test_workers_that_come_and_go_under_a_long_request(
    fleet: Deployed, manager: ModelManager, tiny: Path
) -> None:
    """However often the model is left alone, one task waits for its last request."""
    worker = await fleet.serve("m", tiny, handler=hang)
    await until_models(manager, {"m": 1})
    async with asking(manager.get("m")):
        for _ in range(3):
            await worker.close(graceful=False)
            await eventually(lambda: manager._slots["m"].empty)
            worker = await fleet.serve("m", tiny, handler=hang)
            await until_models(manager, {"m": 1})
        assert len(manager._closing) == 1
    await eventually(lambda: not manager._closing)
    await worker.close(graceful=False)
    await eventually(lambda: not manager._slots)


async def test_end_while_requests_are_under_way(fleet: Deployed, tiny: Path) -> None:
    manager = fleet.manager()
    async with manager.following():
        worker = await fleet.serve("m", tiny, handler=hang)
        await until_models(manager, {"m": 1})
        served = manager.get("m")
        async with asking(served):
            await worker.close(graceful=False)
            await eventually(lambda: manager._slots["m"].empty)
            following = manager._closing
            assert len(following) == 1
    assert not following


@asynccontextmanager
async def asking(served: ServedModel) -> AsyncIterator[Reading[TextOutput]]:
    """A completion that has begun."""

    async def ask(body: bytes, context: Context, deliver: Deliver[TextOutput]) -> None:
        await served.pipeline.completion(decode_completion(body), body, context, deliver)

    async with reading(ask, b'{"model": "m", "prompt": "Hello"}') as reader:
        await reader.until(1)
        yield reader


async def hang(request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
    yield {"token_ids": [300]}
    await asyncio.get_running_loop().create_future()
