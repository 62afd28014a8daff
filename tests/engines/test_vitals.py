"""What the watchdog sees of an engine."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from dynamo.engines.base import LLMEngine
from dynamo.engines.mocker.args import MockerConfig
from dynamo.engines.mocker.engine import create_engine
from dynamo.engines.vitals import EngineVitals
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.kv_events import KvEventBatch
from dynamo.protocols.load import WorkerLoad
from dynamo.runtime.context import Context
from dynamo.runtime.watchdog import Vitals
from dynamo.testing import within
from dynamo.testing.tiny_model import byte_level_files

OUTPUTS = Vitals(steps=7, busy=True)


class Ranks:
    """An engine that says how it is, and remembers what it is asked."""

    def __init__(self, *loads: WorkerLoad) -> None:
        self.loads = list(loads)
        self.requests: list[PreprocessedRequest] = []
        self.closed = 0

    def load(self) -> list[WorkerLoad]:
        return self.loads

    async def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        self.requests.append(request)
        try:
            yield LLMEngineOutput(token_ids=[1])
            raise AssertionError("nobody wants more")
        finally:
            self.closed += 1


def vitals_of(engine: Ranks) -> EngineVitals:
    return EngineVitals(cast("LLMEngine", engine), "m", lambda: OUTPUTS)


@pytest.mark.parametrize(
    ("load", "vitals"),
    [
        (WorkerLoad(steps=3), Vitals(steps=3, busy=False)),
        (WorkerLoad(steps=3, running_requests=1), Vitals(steps=3, busy=True)),
        (WorkerLoad(steps=3, waiting_requests=1), Vitals(steps=3, busy=True)),
        (WorkerLoad(running_requests=1), OUTPUTS),
    ],
)
def test_vitals(load: WorkerLoad, vitals: Vitals) -> None:
    assert vitals_of(Ranks(load)).vitals() == [vitals]


async def test_canary_is_one_token_and_is_closed() -> None:
    engine = Ranks(WorkerLoad())
    await vitals_of(engine).canary(0)
    [request] = engine.requests
    assert (len(request.token_ids), request.stop_conditions.max_tokens, request.dp_rank) == (1, 1, None)
    assert engine.closed == 1


async def test_each_rank_has_its_canary() -> None:
    engine = Ranks(WorkerLoad(dp_rank=4), WorkerLoad(dp_rank=5))
    await vitals_of(engine).canary(1)
    assert engine.requests[0].dp_rank == 5


class Events:
    def publish(self, batch: KvEventBatch) -> None:
        raise AssertionError(f"the cache is as it was: {batch}")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("mode", ["aggregated", "prefill", "decode"])
async def test_canary_of_the_mocker(tmp_path: Path, mode: str) -> None:
    """In each of its roles: it makes a step, leaves nothing behind and is in no KV event."""
    for name, content in byte_level_files().items():
        (tmp_path / name).write_bytes(content)
    engine = create_engine(
        MockerConfig(model_path=str(tmp_path), max_model_len=1024, speedup_ratio=100, disaggregation_mode=mode)
    )
    engine.publish_kv_events(Events())
    await engine.start()
    vitals = EngineVitals(engine, "m", lambda: OUTPUTS)
    [before] = vitals.vitals()
    await within(vitals.canary(0))
    [after] = vitals.vitals()
    assert after.steps > before.steps
    assert not after.busy
    assert engine.load()[0].kv_used_blocks == 0
    await within(engine.cleanup())
