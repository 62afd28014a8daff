"""Discovery says things that no worker of ours would: who follows it goes on, and serves what is sound."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynamo.llm.fitting_workers import FittingWorkers
from dynamo.llm.register import ModelEntry, register_model
from dynamo.protocols.model_card import Artifact, ModelCard, ModelInput, ModelType, RuntimeLimits, WorkerType
from dynamo.router.selection import RouterMode
from dynamo.runtime.instance import EndpointId
from dynamo.testing import eventually, run_strictly, within
from dynamo.testing.scripted import Scripted, answers

from .deployed import Deployed, deployed, until_models

ENDPOINT = "ns.backend.generate"
EXTREMES: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**53,
        2**63,
        2**64,
        10**40,
        0.5,
        1e308,
        "",
        "x",
        "/dev/zero",
        "\0",
        "é" * 300,
        [],
        {},
    ]
)
ANYTHING = st.recursive(EXTREMES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner))
DEEP = b"[" * 100_000 + b"]" * 100_000


def entry(**changes: Any) -> ModelEntry:
    card: dict[str, Any] = {
        "name": "m",
        "model_type": ModelType.Chat.value,
        "model_input": ModelInput.Tokens,
        "limits": RuntimeLimits(kv_block_size=16, total_kv_blocks=100, max_num_seqs=8, max_num_batched_tokens=512),
        "artifacts": [Artifact(name="tokenizer.json", sha256="0" * 64, size_bytes=10)],
        "content_hash": "h",
    }
    return ModelEntry(instance_id=7, endpoint=EndpointId.parse(ENDPOINT), card=ModelCard(**card | changes))


@st.composite
def nearly_right(draw: st.DrawFn) -> bytes:
    """An entry some of whose fields hold something else."""
    kinds = st.sampled_from([*WorkerType])
    value = json.loads(
        entry(worker_type=draw(kinds), artifacts=draw(st.sampled_from([[], entry().card.artifacts]))).encode()
    )
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while True:
            name = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[name], dict | list) and place[name] and draw(st.integers(0, 3)):
                place = place[name]
                continue
            place[name] = draw(ANYTHING)
            break
    return json.dumps(value).encode()


VALUES = st.binary(max_size=40) | ANYTHING.map(lambda value: json.dumps(value).encode()) | nearly_right()
SUFFIXES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def key_of(value: bytes, suffix: str) -> str:
    """The key that belongs to an entry, else one that anybody may take."""
    with contextlib.suppress(ValueError, RecursionError):
        return ModelEntry.decode(value).key
    return f"models/ns/{ENDPOINT}/{suffix}"


async def serve_good_one(fleet: Deployed) -> None:
    worker = fleet.new_worker()
    endpoint = worker.endpoint("ns.good.generate")
    await endpoint.start(Scripted[object, object](answers()))
    await register_model(ModelInput.Text, ModelType.Chat, endpoint, "good")


@pytest.mark.parametrize("mode", [RouterMode.ROUND_ROBIN, RouterMode.KV])
@settings(max_examples=60)
@given(st.lists(st.tuples(SUFFIXES, VALUES), min_size=1, max_size=3))
@example([("deep", b'{"x":' + DEEP + b"}"), ("text", b'{"instance_id": 1, "endpoint": {"namespace": "\xff"}}')])
@example([("", entry(artifacts=[], limits=RuntimeLimits(kv_block_size=16, data_parallel_size=2**40)).encode())])
@example([("", entry(artifacts=[], limits=RuntimeLimits(kv_block_size=2**60)).encode())])
@example([("", entry(artifacts=[], limits=RuntimeLimits(kv_block_size=16, total_kv_blocks=-1)).encode())])
def test_model_manager_goes_on(mode: RouterMode, entries: list[tuple[str, bytes]]) -> None:
    async def run() -> None:
        async with deployed() as fleet:
            manager = fleet.manager(mode=mode)
            async with manager.following() as follower:
                hostile = fleet.new_worker()
                for suffix, value in entries:
                    with contextlib.suppress(ValueError):  # the key is taken
                        await hostile.register(key_of(value, suffix), value)
                await serve_good_one(fleet)
                await until_models(manager, {"good": 1})
                await within(hostile.close())
                await until_models(manager, {"good": 1})
                assert not follower.done()

    run_strictly(run())


@settings(max_examples=60)
@given(st.lists(st.tuples(SUFFIXES, VALUES), min_size=1, max_size=3))
@example([("deep", DEEP)])
def test_kv_routers_go_on(entries: list[tuple[str, bytes]]) -> None:
    async def run() -> None:
        async with deployed() as fleet:
            endpoint = fleet.runtime.endpoint(ENDPOINT)
            client = await endpoint.client()
            workers = FittingWorkers(endpoint, client, lambda _: None, block_size=4, model="good", content_hash="")
            hostile = fleet.new_worker()
            for suffix, value in entries:
                with contextlib.suppress(ValueError):
                    await hostile.register(key_of(value, suffix), value)
            worker = fleet.new_worker()
            await worker.endpoint(ENDPOINT).start(Scripted[object, object](answers()))
            await register_model(
                ModelInput.Text, ModelType.Chat, worker.endpoint(ENDPOINT), "good", kv_cache_block_size=4
            )
            await eventually(lambda: worker.instance_id in workers)
            await within(workers.close())

    run_strictly(run())


@pytest.mark.parametrize(
    "sha256", ["/dev/zero", "../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 64 + "\n", "\0" * 64]
)
def test_a_file_is_named_by_a_hash_and_nothing_else(sha256: str) -> None:
    """A frontend looks for it in its cache by this name."""
    with pytest.raises(ValueError, match="sha256"):
        ModelEntry.decode(entry(artifacts=[Artifact(name="config.json", sha256=sha256, size_bytes=1)]).encode())
