"""Workers that announce one name: those that agree serve it together, the others get nothing."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dynamo.errors import NoInstancesError
from dynamo.llm import model_slot
from dynamo.llm.artifacts import ArtifactCache
from dynamo.llm.model_manager import ModelManager
from dynamo.llm.routing_setup import RoutingSetup
from dynamo.protocols.model_card import WorkerType
from dynamo.router.selection import RouterMode
from dynamo.telemetry.disagg_metrics import DisaggMetrics
from dynamo.telemetry.router_metrics import RouterMetrics
from dynamo.testing import eventually

from .deployed import Deployed, until_models

PREFILL = "ns.prefill.generate"


def served_by(manager: ModelManager, name: str) -> set[int]:
    return {instance.instance_id for instance in manager.get(name).instances()}


async def test_most_of_them_serve_or_else_the_first(
    fleet: Deployed, manager: ModelManager, tiny: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = await fleet.serve("m", tiny)
    await until_models(manager, {"m": 1})
    second = await fleet.serve("m", other)
    await eventually(lambda: f"instance {second.instance_id:x} gets no requests" in caplog.text)
    assert "tokenizer.json" in caplog.text
    assert "chat_template.jinja" not in caplog.text  # which is the same
    third, fourth = await fleet.serve("m", tiny), await fleet.serve("m", tiny)
    await until_models(manager, {"m": 3})
    assert served_by(manager, "m") == {worker.instance_id for worker in (first, third, fourth)}

    await first.close()
    await until_models(manager, {"m": 2})
    assert served_by(manager, "m") == {third.instance_id, fourth.instance_id}
    assert caplog.text.count("gets no requests") == 1  # it is said once
    await third.close()
    await eventually(lambda: bool(manager.models()) and served_by(manager, "m") == {second.instance_id})
    assert f"instance {fourth.instance_id:x} gets no requests" in caplog.text


async def test_every_frontend_chooses_alike(fleet: Deployed, tiny: Path, other: Path) -> None:
    elected = {(await fleet.serve("m", tiny)).instance_id for _ in range(3)}
    for _ in range(3):
        await fleet.serve("m", other)
    for _ in range(3):
        manager = fleet.manager()
        async with manager.following():
            await until_models(manager, {"m": 3})
            assert served_by(manager, "m") == elected


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"context_length": 5}, "context length 5, not None"),
        ({"path": "ns.other.generate"}, "endpoint ns.other.generate, not ns.backend.generate"),
        ({"features": ["logprobs"]}, "another kind of model or engine"),
    ],
)
async def test_differences_are_named(
    fleet: Deployed,
    manager: ModelManager,
    tiny: Path,
    options: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await fleet.serve("m", tiny)
    await until_models(manager, {"m": 1})
    await fleet.serve("m", tiny, **options)
    await eventually(lambda: reason in caplog.text)
    assert caplog.text.count("gets no requests") == 1


async def test_files_are_fetched_from_whoever_has_them(
    fleet: Deployed, manager: ModelManager, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(tiny, spoilt)
    await fleet.serve("m", spoilt)
    (spoilt / "tokenizer.json").write_text("{}")
    await fleet.serve("m", tiny)
    await until_models(manager, {"m": 2})


async def test_unusable_files(
    fleet: Deployed,
    manager: ModelManager,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(model_slot, "_RETRY_S", 0.001)
    good = (tiny / "tokenizer.json").read_bytes()
    (tiny / "tokenizer.json").write_text('{"nonsense": true}')
    worker = await fleet.serve("m", tiny)
    await eventually(lambda: "'m' cannot be served yet" in caplog.text)
    with pytest.raises(NoInstancesError):
        manager.get("m")
    assert caplog.text.count("cannot be served yet") == 1  # the same complaint is not repeated

    await worker.close()
    (tiny / "tokenizer.json").write_bytes(good)
    await fleet.serve("m", tiny)
    await until_models(manager, {"m": 1})


async def test_defect_in_building_is_logged_and_tried_again(
    fleet: Deployed,
    manager: ModelManager,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(model_slot, "_RETRY_S", 0.001)
    with monkeypatch.context() as broken:
        broken.setattr("dynamo.llm.served_model.build_pipeline", lambda *_: 1 // 0)
        await fleet.serve("m", tiny)
        await eventually(lambda: "ZeroDivisionError" in caplog.text)
    await until_models(manager, {"m": 1})


async def test_last_worker_leaves_while_the_model_is_being_made(
    fleet: Deployed, manager: ModelManager, tiny: Path
) -> None:
    worker = await fleet.serve("m", tiny)
    await worker.close()
    await eventually(lambda: not manager._slots)
    with pytest.raises(NoInstancesError):
        manager.get("m")


class TestBlocks:
    """KV routing can do nothing with workers whose blocks are of another size."""

    async def test_other_blocks_are_another_model_to_a_kv_router(
        self, fleet: Deployed, tiny: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        manager = fleet.manager(mode=RouterMode.KV)
        async with manager.following():
            first = await fleet.serve("m", tiny, kv_cache_block_size=16)
            await until_models(manager, {"m": 1})
            second = await fleet.serve("m", tiny, kv_cache_block_size=32)
            third = await fleet.serve("m", tiny)
            await eventually(lambda: caplog.text.count("gets no requests") == 2)
            assert "KV block size 32, not 16" in caplog.text
            assert "KV block size unknown, not 16" in caplog.text
            assert served_by(manager, "m") == {first.instance_id}

            left = {worker.instance_id: worker for worker in (second, third)}
            await first.close()  # then the older of the others; both may be as old, to the millisecond
            await eventually(lambda: bool(manager.models()) and served_by(manager, "m") <= left.keys())
            (elected,) = served_by(manager, "m")
            await left.pop(elected).close()
            await eventually(lambda: bool(manager.models()) and served_by(manager, "m") == left.keys())

    async def test_other_blocks_do_not_matter_otherwise(
        self, fleet: Deployed, manager: ModelManager, tiny: Path
    ) -> None:
        for block_size in (16, 32, None):
            await fleet.serve("m", tiny, kv_cache_block_size=block_size)
        await until_models(manager, {"m": 3})


class TestPrefillWorkers:
    """They belong to a model that others answer for."""

    async def test_alone_they_serve_nothing(
        self, fleet: Deployed, manager: ModelManager, tiny: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, model_slot.__name__)
        prefill = await fleet.serve("m", tiny, path=PREFILL, worker_type=WorkerType.Prefill)
        await eventually(lambda: "m" in manager._slots)
        with pytest.raises(NoInstancesError, match="there are only prefill workers"):
            manager.get("m")
        decode = await fleet.serve("m", tiny, worker_type=WorkerType.Decode)
        await until_models(manager, {"m": 2})
        assert served_by(manager, "m") == {prefill.instance_id, decode.instance_id}

        await decode.close()
        await until_models(manager, {})
        with pytest.raises(NoInstancesError):
            manager.get("m")
        again = await fleet.serve("m", tiny, worker_type=WorkerType.Decode)
        await until_models(manager, {"m": 2})
        assert served_by(manager, "m") == {prefill.instance_id, again.instance_id}
        await prefill.close()
        await until_models(manager, {"m": 1})
        assert [message for message in caplog.messages if message.startswith("m: ")] == [
            "m: 1 prefill worker, and none that decodes",
            "m: 1 prefill worker",
            "m: 1 prefill worker, and none that decodes",
            "m: 1 prefill worker",
            "m: no prefill worker",
        ]

    async def test_come_and_go(self, fleet: Deployed, manager: ModelManager, tiny: Path) -> None:
        await fleet.serve("m", tiny, worker_type=WorkerType.Decode)
        await until_models(manager, {"m": 1})
        served = manager.get("m")
        for _ in range(2):
            prefill = await fleet.serve("m", tiny, path=PREFILL, worker_type=WorkerType.Prefill)
            await until_models(manager, {"m": 2})
            await prefill.close()
            await until_models(manager, {"m": 1})
        assert manager.get("m") is served

    async def test_of_another_endpoint_than_before(self, fleet: Deployed, manager: ModelManager, tiny: Path) -> None:
        await fleet.serve("m", tiny, worker_type=WorkerType.Decode)
        first = await fleet.serve("m", tiny, path=PREFILL, worker_type=WorkerType.Prefill)
        await until_models(manager, {"m": 2})
        await first.close()
        second = await fleet.serve("m", tiny, path="ns.other.generate", worker_type=WorkerType.Prefill)
        await until_models(manager, {"m": 2})
        assert second.instance_id in served_by(manager, "m")

    async def test_of_another_model(
        self, fleet: Deployed, manager: ModelManager, tiny: Path, other: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        decode = await fleet.serve("m", tiny, worker_type=WorkerType.Decode)
        await until_models(manager, {"m": 1})
        wrong = await fleet.serve("m", other, path=PREFILL, worker_type=WorkerType.Prefill)
        await eventually(lambda: f"instance {wrong.instance_id:x} gets no requests" in caplog.text)
        assert "endpoint" not in caplog.text  # it need not be the same
        right = await fleet.serve("m", tiny, path=PREFILL, worker_type=WorkerType.Prefill)
        await until_models(manager, {"m": 2})
        assert served_by(manager, "m") == {decode.instance_id, right.instance_id}

    async def test_decode_and_aggregated_workers_share_a_model(
        self, fleet: Deployed, manager: ModelManager, tiny: Path
    ) -> None:
        await fleet.serve("m", tiny, worker_type=WorkerType.Decode)
        await fleet.serve("m", tiny)
        await until_models(manager, {"m": 2})

    async def test_of_another_deployment(
        self, fleet: Deployed, manager: ModelManager, tiny: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Two namespaces that have models of one name: each keeps to its own workers."""
        own = [await fleet.serve("m", tiny, worker_type=WorkerType.Decode) for _ in range(2)]
        await until_models(manager, {"m": 2})
        prefill = await fleet.serve("m", tiny, path=PREFILL, worker_type=WorkerType.Prefill)
        for _ in range(2):
            await fleet.serve("m", tiny, path="other.prefill.generate", worker_type=WorkerType.Prefill)
        await eventually(lambda: caplog.text.count("namespace other, not ns") == 2)
        assert served_by(manager, "m") == {worker.instance_id for worker in (*own, prefill)}

    async def test_that_hand_over_in_another_way(
        self, fleet: Deployed, manager: ModelManager, tiny: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Even where an aggregated worker, which tells of no way, was there first."""
        await fleet.serve("m", tiny)
        decode = await fleet.serve("m", tiny, worker_type=WorkerType.Decode, handoff_format="a/16")
        await until_models(manager, {"m": 2})
        wrong = await fleet.serve("m", tiny, path=PREFILL, worker_type=WorkerType.Prefill, handoff_format="a/32")
        await eventually(lambda: f"instance {wrong.instance_id:x} gets no requests" in caplog.text)
        assert "handed over as a/32, not a/16" in caplog.text
        right = await fleet.serve("m", tiny, path=PREFILL, worker_type=WorkerType.Prefill, handoff_format="a/16")
        await until_models(manager, {"m": 3})
        assert {decode.instance_id, right.instance_id} < served_by(manager, "m")

    async def test_what_is_left_of_those_that_are_gone(self, fleet: Deployed, tiny: Path) -> None:
        """No metrics, no subscriptions."""
        registry = CollectorRegistry()
        routing = RoutingSetup(
            mode=RouterMode.KV, metrics=RouterMetrics(registry), disagg_metrics=DisaggMetrics(registry)
        )
        manager = ModelManager(fleet.runtime, namespace=None, routing=routing, cache=ArtifactCache(None))
        async with manager.following():
            decode = await fleet.serve("m", tiny, kv_cache_block_size=16, worker_type=WorkerType.Decode)
            for path in (PREFILL, "ns.other.generate"):
                prefill = await fleet.serve(
                    "m", tiny, path=path, kv_cache_block_size=16, worker_type=WorkerType.Prefill
                )
                await until_models(manager, {"m": 2})
                assert generate_latest(registry).decode().count('decisions_total{model="m",worker_type="prefill"}') == 1
                await prefill.close()
                await until_models(manager, {"m": 1})
            assert "dynamo_disagg_prefill_seconds" in generate_latest(registry).decode()
            await decode.close()
            await eventually(lambda: not manager._slots and not manager._leaving)
            assert 'model="m"' not in generate_latest(registry).decode()
            assert not [client for client in fleet.runtime._clients if "prefill" in str(client.endpoint)]
