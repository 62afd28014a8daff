import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from dynamo.clock import VirtualClock
from dynamo.config import parse
from dynamo.engines.mocker.args import MockerConfig
from dynamo.engines.mocker.engine import MockerEngine, create_engine, create_engines
from dynamo.engines.mocker.pacing import Pacer
from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.scheduler import Scheduler, StepResult
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.errors import ConfigError, ConnectionLostError, ContextLengthExceededError, UnavailableError
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, WorkerId
from dynamo.protocols.kv_events import BlockRemoved, BlockStored, KvEventBatch
from dynamo.router.indexer import KvIndexer
from dynamo.runtime.context import Context
from dynamo.runtime.handler import closing
from dynamo.testing.kv_event_log import KvEventLog
from dynamo.tokens import block_seed, hashes_to_bytes, sequence_hashes, token_array

MakeRequest = Callable[..., PreprocessedRequest]
DEADLINE_S = 10.0


class CountingScheduler(Scheduler):
    """Counts its steps, and fails when it is told to."""

    steps = 0
    broken = False

    def step(self) -> StepResult:
        if self.broken:
            raise RuntimeError("out of order")
        self.steps += 1
        return super().step()


def scheduler_of(speedup_ratio: float = 0.0) -> CountingScheduler:
    config = SchedulerConfig(block_size=4, num_blocks=100, max_model_len=200)
    return CountingScheduler(config, TimingModel(speedup_ratio=speedup_ratio), Sampler(range(1000)))


@pytest.fixture
def scheduler() -> CountingScheduler:
    return scheduler_of()


@pytest.fixture
async def engine(scheduler: CountingScheduler) -> AsyncIterator[MockerEngine]:
    engine = MockerEngine(scheduler)
    await engine.start()
    yield engine
    await engine.cleanup()


async def collect(engine: MockerEngine, request: PreprocessedRequest) -> list[LLMEngineOutput]:
    async with asyncio.timeout(DEADLINE_S):
        return [output async for output in engine.generate(request, Context())]


async def test_start_says_what_the_engine_can_do(scheduler: CountingScheduler) -> None:
    engine = MockerEngine(scheduler)
    info = await engine.start()
    await engine.cleanup()

    assert info.context_length == 200
    assert (info.limits.kv_block_size, info.limits.total_kv_blocks, info.limits.max_num_seqs) == (4, 100, 256)
    assert info.limits.max_num_batched_tokens == 8192
    assert info.features == frozenset()


async def test_each_step_yields_one_token_to_each(engine: MockerEngine, request_of: MakeRequest) -> None:
    requests = [request_of(range(start, start + 10), max_tokens=20) for start in (0, 100, 200)]
    answers = await asyncio.gather(*(collect(engine, request) for request in requests))

    for request, outputs in zip(requests, answers, strict=True):
        assert [output.token_ids for output in outputs] == [
            [token_id] for token_id in Sampler(range(1000)).script(request, 100).tokens(0, 20)
        ]
        assert outputs[0].cached_tokens == 0
        assert [output.finish_reason for output in outputs] == 19 * [None] + [FinishReason.LENGTH]


async def test_a_slow_consumer_gets_the_rest_as_one(
    engine: MockerEngine, scheduler: CountingScheduler, request_of: MakeRequest
) -> None:
    async with closing(engine.generate(request_of(range(10), max_tokens=20), Context())) as outputs:
        first = await anext(outputs)
        await collect(engine, request_of(range(10), max_tokens=30))  # begins later and takes longer
        rest = [output async for output in outputs]

    assert [len(first.token_ids), *(len(output.token_ids) for output in rest)] == [1, 19]
    assert rest[0].finish_reason == FinishReason.LENGTH


async def test_closing_the_iterator_frees_the_sequence_at_once(engine: MockerEngine, request_of: MakeRequest) -> None:
    async with closing(engine.generate(request_of(range(10), max_tokens=100), Context())) as outputs:
        await anext(outputs)
        (load,) = engine.load()
        assert (load.running_requests, load.kv_used_blocks) == (1, 3)

    (load,) = engine.load()
    assert (load.running_requests, load.waiting_requests, load.kv_used_blocks) == (0, 0, 0)


async def test_cancelling_the_consumer_frees_the_sequence(engine: MockerEngine, request_of: MakeRequest) -> None:
    slow = asyncio.create_task(collect(engine, request_of(range(10), ignore_eos=True)))
    await collect(engine, request_of(range(10), max_tokens=5))
    slow.cancel()
    await asyncio.wait([slow])

    assert engine.load()[0].running_requests == 0


async def test_abort_ends_the_stream_with_cancelled(engine: MockerEngine, request_of: MakeRequest) -> None:
    context = Context("the-one")
    async with closing(engine.generate(request_of(range(10), ignore_eos=True), context)) as outputs:
        await anext(outputs)
        await engine.abort("another")
        assert engine.load()[0].running_requests == 1
        await engine.abort("the-one")
        await engine.abort("the-one")
        assert engine.load()[0].running_requests == 0
        for _ in range(5):
            await asyncio.sleep(0)  # the step that was under way ends
        rest = [output async for output in outputs]

    assert rest == [LLMEngineOutput(finish_reason=FinishReason.CANCELLED)]


async def test_a_prompt_that_does_not_fit_is_the_callers_mistake(engine: MockerEngine, request_of: MakeRequest) -> None:
    with pytest.raises(ContextLengthExceededError):
        await collect(engine, request_of(range(200), max_tokens=1))
    assert len(await collect(engine, request_of(range(199), max_tokens=1))) == 1


async def test_an_idle_engine_does_nothing(
    engine: MockerEngine, scheduler: CountingScheduler, request_of: MakeRequest
) -> None:
    for expected in (3, 6):
        await collect(engine, request_of(range(10), max_tokens=3))
        for _ in range(20):
            await asyncio.sleep(0)
        assert scheduler.steps == expected


async def test_simulated_time_passes_in_real_time(request_of: MakeRequest) -> None:
    engine = MockerEngine(scheduler_of(speedup_ratio=1.0))
    await engine.start()
    began_s = time.monotonic()
    outputs = await collect(engine, request_of(range(10), max_tokens=3))
    took_s = time.monotonic() - began_s
    await engine.cleanup()

    assert [len(output.token_ids) for output in outputs] == [1, 1, 1]
    assert took_s >= 0.0165 + 2 * 0.00574


async def test_a_request_to_an_idle_engine_begins_at_once_and_takes_its_time(request_of: MakeRequest) -> None:
    clock = VirtualClock()

    async def sleep(delay_s: float) -> None:
        clock.advance(delay_s)
        await asyncio.sleep(0)

    engine = MockerEngine(scheduler_of(speedup_ratio=1.0), pacer=Pacer(clock.now_s, sleep))
    clock.advance(1000.0)
    await engine.start()
    for turns in (0, 1, 1):  # the first request comes before the engine's first turn
        for _ in range(turns):
            await asyncio.sleep(0)
            clock.advance(1000.0)
        began_s = clock.now_s()
        await collect(engine, request_of(range(10), max_tokens=1))
        assert 0.0165 < clock.now_s() - began_s < 0.018
    await engine.cleanup()


async def test_cleanup_ends_what_runs(engine: MockerEngine, request_of: MakeRequest) -> None:
    running = asyncio.create_task(collect(engine, request_of(range(10), ignore_eos=True)))
    await collect(engine, request_of(range(10), max_tokens=5))
    await engine.cleanup()

    with pytest.raises(UnavailableError):
        await running
    with pytest.raises(UnavailableError):
        await collect(engine, request_of(range(10)))
    assert engine.load()[0].running_requests == 0


async def test_cleanup_without_start_is_possible(scheduler: CountingScheduler) -> None:
    await MockerEngine(scheduler).cleanup()


async def test_a_defect_is_told_to_everyone(
    engine: MockerEngine, scheduler: CountingScheduler, request_of: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler.broken = True
    with pytest.raises(ConnectionLostError):
        await collect(engine, request_of(range(10)))

    assert "stopped" in await engine.failed()
    assert "out of order" in caplog.text
    with pytest.raises(ConnectionLostError):
        await collect(engine, request_of(range(10)))


async def test_an_engine_made_from_flags_speaks_plain_words(
    model_dir: Path, tokenizer: Tokenizer, request_of: MakeRequest
) -> None:
    flags = ["--model-path", str(model_dir), "--speedup-ratio", "0", "--num-workers", "2"]
    config = parse(MockerConfig, flags, prog="mocker", environ={})
    engine = create_engine(config)
    await engine.start()
    outputs = await collect(engine, request_of(range(10), max_tokens=30))
    await engine.cleanup()

    texts = [tokenizer.decode(output.token_ids) for output in outputs]
    assert all(text[0] == " " and text[1:].isalpha() and text.isascii() for text in texts)
    assert len(create_engines(config)) == 2


def test_no_workers_are_refused(model_dir: Path) -> None:
    config = parse(MockerConfig, ["--model-path", str(model_dir), "--num-workers", "0"], prog="mocker", environ={})
    with pytest.raises(ConfigError, match="--num-workers"):
        create_engines(config)


class TestKvEvents:
    @pytest.fixture
    async def published(self, scheduler: CountingScheduler) -> AsyncIterator[tuple[MockerEngine, list[KvEventBatch]]]:
        engine = MockerEngine(scheduler)
        log = KvEventLog()
        assert engine.publish_kv_events(log)
        await engine.start()
        yield engine, log.batches
        await engine.cleanup()

    async def test_a_block_is_announced_before_the_token_that_filled_it(
        self, published: tuple[MockerEngine, list[KvEventBatch]], request_of: MakeRequest
    ) -> None:
        engine, batches = published
        prompt = range(10)
        async with closing(engine.generate(request_of(prompt, ignore_eos=True), Context())) as outputs:
            await anext(outputs)
            hashes = sequence_hashes(token_array(prompt), 4)
            assert batches == [KvEventBatch(0, [BlockStored(hashes_to_bytes(hashes))])]

    async def test_a_block_is_announced_when_the_step_that_fills_it_ends(
        self, scheduler: CountingScheduler, request_of: MakeRequest
    ) -> None:
        log = KvEventLog()
        before: list[int] = []  # batches, when a step was over

        class Steps(Pacer):
            async def step(self, duration_s: float) -> None:
                await super().step(duration_s)
                before.append(len(log.batches))

        engine = MockerEngine(scheduler, pacer=Steps())
        engine.publish_kv_events(log)
        await engine.start()
        await collect(engine, request_of(range(10), max_tokens=1))
        await engine.cleanup()
        assert (before, len(log.batches)) == ([0], 1)

    async def test_a_step_is_one_batch_and_one_without_effect_is_none(
        self, published: tuple[MockerEngine, list[KvEventBatch]], request_of: MakeRequest, scheduler: CountingScheduler
    ) -> None:
        engine, batches = published
        await collect(engine, request_of(range(8), max_tokens=9))
        assert [len(batch.events) for batch in batches] == [1, 1, 1]  # the prompt, then two blocks of output
        assert scheduler.steps == 9
        before = len(batches)
        await collect(engine, request_of(range(8), max_tokens=1))  # all there already
        assert len(batches) == before

    async def test_the_index_is_right_whatever_was_evicted(
        self, published: tuple[MockerEngine, list[KvEventBatch]], request_of: MakeRequest, scheduler: CountingScheduler
    ) -> None:
        engine, batches = published
        prompts = [range(start, start + 40) for start in range(0, 400, 20)]
        await asyncio.gather(*(collect(engine, request_of(prompt, max_tokens=60)) for prompt in prompts))
        indexer = KvIndexer()
        for batch in batches:
            indexer.apply(7, batch)
        pool = scheduler.pool
        assert set(indexer.tree.held(WorkerId(7))) == pool._users.keys() | pool._cached.keys()
        assert any(isinstance(event, BlockRemoved) for batch in batches for event in batch.events)
        assert scheduler.preemptions > 0

    async def test_salt_is_part_of_a_blocks_name(
        self, published: tuple[MockerEngine, list[KvEventBatch]], request_of: MakeRequest
    ) -> None:
        engine, batches = published
        cached: list[int | None] = []
        for salt in (None, "a", "b", "a", None):
            request = request_of(range(9), max_tokens=1)
            request.cache_salt = salt
            (output,) = await collect(engine, request)
            cached.append(output.cached_tokens)
        assert cached == [0, 0, 0, 8, 8]
        names = [sequence_hashes(token_array(range(9)), 4, block_seed(cache_salt=salt)) for salt in (None, "a", "b")]
        assert [batch.events for batch in batches] == [[BlockStored(hashes_to_bytes(hashes))] for hashes in names]

    async def test_none_without_prefix_caching(self) -> None:
        config = SchedulerConfig(block_size=4, num_blocks=100, max_model_len=200, enable_prefix_caching=False)
        engine = MockerEngine(Scheduler(config, TimingModel(), Sampler(range(1000))))
        assert not engine.publish_kv_events(KvEventLog())
