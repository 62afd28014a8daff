"""The process around an engine, with an engine that does as the test says."""

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Gauge

from dynamo.engines import worker as worker_module
from dynamo.engines.base import EngineInfo, KvEventSink
from dynamo.engines.config import DisaggregatedWorkerConfig, WorkerConfig
from dynamo.engines.engine_endpoint import EngineEndpoint
from dynamo.engines.worker import Worker, _serve, run_workers
from dynamo.errors import ConfigError, InternalError, OverloadedError, WorkerStalledError
from dynamo.llm.register import MODELS_PREFIX, ModelEntry
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.kv_events import BlockStored, KvEventBatch
from dynamo.protocols.load import LOAD_ENDPOINT, WorkerLoad
from dynamo.router.publisher import KV_EVENTS_ENDPOINT
from dynamo.runtime.context import Context
from dynamo.runtime.discovery.base import Put
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.event_feed import Subscribe
from dynamo.testing import eventually, program, within
from dynamo.testing.tiny_model import byte_level_files
from dynamo.tokens import token_array

REQUEST = PreprocessedRequest(model="m", token_ids=token_array([1]))


class FakeEngine:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.has_kv_events = False
        self.start_error: Exception | None = None
        self.refusal: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.failure = asyncio.Event()
        self.aborted = asyncio.Event()

    def publish_kv_events(self, sink: KvEventSink) -> bool:
        self.kv_events = sink
        return self.has_kv_events

    async def start(self) -> EngineInfo:
        self.calls.append("start")
        if self.start_error is not None:
            raise self.start_error
        return EngineInfo(context_length=77, handoff_format="fake/16")

    async def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        try:
            await self.answers.wait()
            if self.refusal is not None:
                raise self.refusal
            yield LLMEngineOutput(token_ids=[1])
            await self.aborted.wait()
            yield LLMEngineOutput(finish_reason=FinishReason.CANCELLED)
        finally:
            self.calls.append("generate ended")

    async def abort(self, request_id: str) -> None:
        self.calls.append(f"abort {request_id}")
        self.aborted.set()

    def load(self) -> list[WorkerLoad]:
        return [WorkerLoad(running_requests=3), WorkerLoad(dp_rank=1)]

    async def failed(self) -> str:
        await self.failure.wait()
        return "it caught fire"

    async def cleanup(self) -> None:
        self.calls.append("cleanup")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "tiny"
    directory.mkdir()
    for name, content in byte_level_files().items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def config(tmp_path: Path) -> WorkerConfig:
    return WorkerConfig(discovery_backend="mem", request_plane="inproc", file_kv=str(tmp_path / "discovery"))


def nothing_pending(engine: FakeEngine) -> list[WorkerLoad]:
    return [msgspec.structs.replace(load, prefill_tokens=0) for load in engine.load()]


class TestEndpoint:
    async def test_stop_becomes_an_abort(self) -> None:
        engine, context = FakeEngine(), Context("mine")
        stream = EngineEndpoint(engine).generate(REQUEST, context)
        await anext(stream)
        context.stop_generating()
        assert (await within(anext(stream))).finish_reason is FinishReason.CANCELLED
        assert engine.calls == ["abort mine"]

    async def test_stop_before_the_start(self) -> None:
        engine, context = FakeEngine(), Context("mine")
        context.stop_generating()
        outputs = [output async for output in EngineEndpoint(engine).generate(REQUEST, context)]
        assert outputs[-1].finish_reason is FinishReason.CANCELLED

    async def test_kill_closes_the_stream_instead(self) -> None:
        engine, context = FakeEngine(), Context("mine")
        stream: Any = EngineEndpoint(engine).generate(REQUEST, context)
        await anext(stream)
        context.kill()
        await stream.aclose()
        assert engine.calls == ["generate ended"]

    async def test_stop_after_the_end_concerns_nobody(self) -> None:
        engine, context = FakeEngine(), Context("mine")
        stream: Any = EngineEndpoint(engine).generate(REQUEST, context)
        await anext(stream)
        await stream.aclose()
        context.stop_generating()
        await asyncio.sleep(0)
        assert engine.calls == ["generate ended"]

    async def test_load(self) -> None:
        engine = FakeEngine()
        assert EngineEndpoint(engine).load() == nothing_pending(engine)

    async def test_prompts_are_load_until_the_first_output(self) -> None:
        engine = FakeEngine()
        engine.answers.clear()
        endpoint = EngineEndpoint(engine)

        def pending() -> list[int | None]:
            return [load.prefill_tokens for load in endpoint.load()]

        request = PreprocessedRequest(model="m", token_ids=token_array(range(7)), dp_rank=1)
        stream: Any = endpoint.generate(request, Context())
        assert pending() == [0, 0]
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert pending() == [0, 7]
        engine.answers.set()
        await within(first)
        assert pending() == [0, 0]
        await stream.aclose()
        assert pending() == [0, 0]

    async def test_prompts_that_never_get_an_output_are_no_load(self) -> None:
        engine = FakeEngine()
        engine.refusal = OverloadedError("full")
        endpoint = EngineEndpoint(engine)
        with pytest.raises(OverloadedError):
            await anext(endpoint.generate(REQUEST, Context()))
        assert endpoint.load() == nothing_pending(engine)


class TestName:
    def test_own(self) -> None:
        assert Worker(engine=FakeEngine(), model_path="/models/a", model_name="mine").name == "mine"

    @pytest.mark.parametrize("path", ["/models/a", "/models/a/", "org/a", "./a", "b/../a"])
    def test_from_the_path(self, path: str) -> None:
        assert Worker(engine=FakeEngine(), model_path=path).name == "a"

    def test_current_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert Worker(engine=FakeEngine(), model_path=".").name == tmp_path.name


class TestRun:
    @pytest.fixture(autouse=True)
    def _leave_this_process_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dynamo.telemetry.logging.configure", lambda: None)
        monkeypatch.setattr(worker_module, "settle_memory", lambda: None)

    def test_failure_to_start(
        self,
        config: WorkerConfig,
        model: Path,
        capfd: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        engine = FakeEngine()
        engine.start_error = InternalError("out of memory")
        assert run_workers(config, [Worker(engine=engine, model_path=str(model))]) == 1
        assert engine.calls == ["start", "cleanup"]
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["out of memory"]
        assert not any(record.exc_info for record in caplog.records)
        assert "ready:" not in capfd.readouterr().err

    def test_defect_keeps_its_traceback(self, config: WorkerConfig, model: Path) -> None:
        engine = FakeEngine()
        engine.start_error = ValueError("a defect")
        with pytest.raises(ValueError, match="a defect"):
            run_workers(config, [Worker(engine=engine, model_path=str(model))])
        assert engine.calls == ["start", "cleanup"]

    def test_failure_later(
        self,
        config: WorkerConfig,
        model: Path,
        capfd: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        engine = FakeEngine()
        engine.failure.set()
        assert run_workers(config, [Worker(engine=engine, model_path=str(model), model_name="m")]) == 1
        assert engine.calls == ["start", "cleanup"]
        assert "ready: m\n" in capfd.readouterr().err
        assert "the engine has failed: it caught fire" in caplog.text

    def test_says_what_it_does_if_that_is_not_all(
        self, config: WorkerConfig, model: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        engine = FakeEngine()
        engine.failure.set()
        prefill = DisaggregatedWorkerConfig(
            discovery_backend="mem", request_plane="inproc", file_kv=config.file_kv, disaggregation_mode="prefill"
        )
        run_workers(prefill, [Worker(engine=engine, model_path=str(model), model_name="m")])
        assert "ready: m (prefill)\n" in capfd.readouterr().err

    def test_one_of_several_fails(self, config: WorkerConfig, model: Path) -> None:
        engines = [FakeEngine() for _ in range(3)]
        engines[1].failure.set()
        assert run_workers(config, [Worker(engine=engine, model_path=str(model)) for engine in engines]) == 1
        assert [engine.calls for engine in engines] == [["start", "cleanup"]] * 3

    def test_all_engines_are_cleaned_up_when_one_does_not_start(self, config: WorkerConfig, model: Path) -> None:
        engines = [FakeEngine() for _ in range(3)]
        engines[1].start_error = ConfigError("no such device")
        assert run_workers(config, [Worker(engine=engine, model_path=str(model)) for engine in engines]) == 1
        assert [engine.calls for engine in engines] == [["start", "cleanup"], ["start", "cleanup"], []]

    def test_what_the_engine_measures_is_shown(
        self, config: WorkerConfig, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = CollectorRegistry()
        monkeypatch.setattr(DistributedRuntime, "registry", registry)
        engine = FakeEngine()
        engine.failure.set()
        gauge = Gauge("fire", "Whether it burns", registry=None)
        run_workers(config, [Worker(engine=engine, model_path=str(model), metrics=[gauge])])
        assert registry.get_sample_value("fire") == 0

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({"endpoint": "generate"}, "namespace.component.endpoint"),
            ({"custom_jinja_template": "/nowhere"}, "no chat template at /nowhere"),
        ],
    )
    def test_wrong_flags_are_found_before_the_engine_starts(
        self, config: WorkerConfig, model: Path, wrong: dict[str, str], reason: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = FakeEngine()
        config = replace(config, **wrong)  # type: ignore[arg-type]
        assert run_workers(config, [Worker(engine=engine, model_path=str(model))]) == 1
        assert engine.calls == ["cleanup"]
        assert reason in caplog.text


@pytest.fixture
async def runtime(config: WorkerConfig) -> AsyncIterator[DistributedRuntime]:
    runtime = DistributedRuntime(config=config)
    yield runtime
    await within(runtime.close())


async def test_what_an_engine_can_do_is_announced(
    runtime: DistributedRuntime, config: WorkerConfig, model: Path
) -> None:
    watch = runtime.discovery.watch(MODELS_PREFIX)
    await _serve(runtime, config, Worker(engine=FakeEngine(), model_path=str(model)))
    [event] = watch.take()
    assert isinstance(event, Put)
    card = ModelEntry.decode(event.value).card
    assert (card.context_length, card.handoff_format) == (77, "fake/16")


class TestKvEvents:
    async def visible(self, runtime: DistributedRuntime, config: WorkerConfig, model: Path, engine: FakeEngine) -> str:
        """What discovery says of a worker, in the order in which it has become visible."""
        watch = runtime.discovery.watch("")
        await _serve(runtime, config, Worker(engine=engine, model_path=str(model)))
        return " ".join(event.key.split("/")[-2 if event.key.startswith("instances/") else 0] for event in watch.take())

    async def test_are_served_before_the_model_is_visible(
        self, runtime: DistributedRuntime, config: WorkerConfig, model: Path
    ) -> None:
        engine = FakeEngine()
        engine.has_kv_events = True
        order = (await self.visible(runtime, config, model, engine)).split()
        assert order.index("kv_events") < order.index("generate") < order.index("models")

        engine.kv_events.publish(KvEventBatch(0, [BlockStored(b"12345678")]))
        endpoint = config.endpoint_id()
        client = await runtime.endpoint(f"{endpoint.namespace}.{endpoint.component}.kv_events").client()
        stream = await client.generate(Subscribe(), annotated=False)
        assert await within(anext(stream)) == [1, 1, 0, [0, [[0, b"12345678", 0]]]]  # a part of a dump

    async def test_are_withdrawn_when_the_engine_knows_no_more(
        self, runtime: DistributedRuntime, config: WorkerConfig, model: Path
    ) -> None:
        engine = FakeEngine()
        engine.has_kv_events = True
        order = await self.visible(runtime, config, model, engine)
        assert "kv_events" in order
        kv_events = await runtime.endpoint(str(config.endpoint_id().beside("kv_events"))).client()
        assert kv_events.instance_ids()
        engine.kv_events.close()
        await eventually(lambda: not kv_events.instance_ids())

    async def test_are_not_served_by_an_engine_without_them(
        self, runtime: DistributedRuntime, config: WorkerConfig, model: Path
    ) -> None:
        order = (await self.visible(runtime, config, model, FakeEngine())).split()
        assert "kv_events" not in order
        assert "load" in order


class HungEngine(FakeEngine):
    """Answers with one token, and goes on without end, unless it hangs."""

    def __init__(self, steps: int | None) -> None:
        super().__init__()
        self.steps = steps
        self.running = 0
        self.canaries = 0

    async def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        self.running += 1
        self.canaries += request.model == "hung"
        try:
            await self.answers.wait()
            self._step()
            yield LLMEngineOutput(token_ids=[1])
            while True:
                await self.answers.wait()
                self._step()
                await asyncio.sleep(0.01)
        finally:
            self.running -= 1

    def _step(self) -> None:
        if self.steps is not None:
            self.steps += 1

    def load(self) -> list[WorkerLoad]:
        return [WorkerLoad(running_requests=self.running, steps=self.steps)]


@pytest.mark.parametrize("steps", [0, None], ids=["counts steps", "is judged by outputs"])
async def test_hung_engine_leaves_and_comes_back(config: WorkerConfig, model: Path, steps: int | None) -> None:
    config = replace(config, canary_interval_s=0.05, engine_stall_timeout_s=0.2)
    runtime, engine = DistributedRuntime(config=config), HungEngine(steps)
    await _serve(runtime, config, Worker(engine=engine, model_path=str(model), model_name="hung"))
    caller = runtime.sibling()
    client = await caller.endpoint(str(config.endpoint_id())).client(response_type=LLMEngineOutput)
    loads = await caller.endpoint(str(config.endpoint_id().beside("load"))).client()
    models = caller.discovery.watch(MODELS_PREFIX)
    await within(client.wait_for_instances())
    stream = await client.generate(REQUEST, annotated=False)
    await within(anext(stream))

    engine.answers.clear()
    with pytest.raises(WorkerStalledError, match="the engine makes no progress"):
        await within(anext(stream))
    await eventually(lambda: not client.instance_ids())
    assert not runtime.health.ready
    assert loads.instance_ids()  # it can be asked how it is, and its cache is as it was
    assert len(models.take()) == 1  # still the model's worker, but one that cannot be called

    engine.answers.set()
    await within(client.wait_for_instances())
    assert runtime.health.ready
    stream = await client.generate(REQUEST, annotated=False)
    await within(anext(stream))
    await stream.aclose()
    assert engine.canaries
    await within(runtime.close())
    await eventually(lambda: engine.running == 0)


SLOW_START = """
import asyncio, sys
from dynamo.engines.config import DisaggregatedWorkerConfig, WorkerConfig
from dynamo.engines.echo import EchoEngine
from dynamo.engines.worker import Worker, run_workers

class SlowEngine(EchoEngine):
    async def start(self):
        print("starting", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            print("given up", flush=True)

    async def cleanup(self):
        print("cleaned up", flush=True)

sys.exit(run_workers(WorkerConfig(file_kv=sys.argv[1]), [Worker(engine=SlowEngine(), model_path=sys.argv[2])]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_told_to_stop_while_the_engine_starts(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    discovery = tmp_path / "discovery"
    async with program(["-c", SLOW_START, str(discovery), str(model)]) as worker:
        await worker.line("starting")
        worker.signal(number)
        assert await worker.exit_code() == 0
    assert worker.output.splitlines()[-2:] == ["given up", "cleaned up"]
    assert not discovery.exists()


def test_endpoints_have_the_names_that_others_ask_for() -> None:
    assert (LOAD_ENDPOINT, KV_EVENTS_ENDPOINT) == ("load", "kv_events")
