"""A real vLLM with SmolLM2. The engine takes half a minute to start, so all tests share one; the last one kills it."""

import asyncio
import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from dynamo.engines.base import EngineInfo
from dynamo.engines.vitals import EngineVitals
from dynamo.engines.vllm.args import parse_command_line
from dynamo.errors import ConnectionLostError, ContextLengthExceededError, InvalidRequestError
from dynamo.llm.continuation import Continuation
from dynamo.protocols.generation import (
    FinishReason,
    GuidedDecoding,
    LLMEngineOutput,
    OutputOptions,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    merge_outputs,
)
from dynamo.protocols.kv_events import AllBlocksCleared, BlockStored, KvEvent, KvEventBatch
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import EngineFeature
from dynamo.runtime.context import Context
from dynamo.runtime.watchdog import Watchdog
from dynamo.testing.kv_event_log import KvEventLog
from dynamo.testing.waiting import eventually, within
from dynamo.tokens import HashArray, block_seed, hash_array, hashes_from_bytes, sequence_hashes, token_array

from .processes import engine_processes

if TYPE_CHECKING:
    from dynamo.engines.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # importing vLLM and torch warns a lot
]

BLOCK_SIZE = 32
CONTEXT_LENGTH = 256
END_OF_TURN = 2
CAPITAL = "What is the capital of France?"
LONG = "Write a very long story about a dragon."
DEADLINE_S = 60.0


class Running(NamedTuple):
    engine: "VllmEngine"
    info: EngineInfo
    tokenizer: Tokenizer
    kv_events: list[KvEventBatch]

    def tokens(self, question: str) -> list[int]:
        """The chat template by hand."""
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, outputs: list[LLMEngineOutput]) -> str:
        text: str = self.tokenizer.decode([token_id for output in outputs for token_id in output.token_ids])
        return text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vllm(smollm2_dir: Path) -> AsyncIterator[Running]:
    with mock.patch.dict(os.environ):  # vLLM writes to it
        flags = ["--max-model-len", str(CONTEXT_LENGTH), "--max-num-seqs", "8"]
        _, config = parse_command_line(["--model", str(smollm2_dir), *flags])
        from dynamo.engines.vllm.engine import VllmEngine

        engine = VllmEngine(config)
        kv_events = KvEventLog()
        try:
            assert engine.publish_kv_events(kv_events)
            info = await engine.start()
            yield Running(engine, info, Tokenizer.from_file(str(smollm2_dir / "tokenizer.json")), kv_events.batches)
        finally:
            await engine.cleanup()


def request(
    token_ids: list[int],
    *,
    sampling: SamplingOptions | None = None,
    stop: StopConditions | None = None,
    output: OutputOptions | None = None,
    guided: GuidedDecoding | None = None,
    dp_rank: int | None = None,
    cache_salt: str | None = None,
) -> PreprocessedRequest:
    return PreprocessedRequest(
        model="smollm2",
        token_ids=token_array(token_ids),
        sampling_options=sampling or SamplingOptions(temperature=0.0),
        stop_conditions=stop or StopConditions(max_tokens=24),
        output_options=output or OutputOptions(),
        guided_decoding=guided,
        eos_token_ids=[END_OF_TURN],
        dp_rank=dp_rank,
        cache_salt=cache_salt,
    )


async def collect(vllm: Running, wanted: PreprocessedRequest, context: Context | None = None) -> list[LLMEngineOutput]:
    async def outputs() -> list[LLMEngineOutput]:
        return [output async for output in vllm.engine.generate(wanted, context or Context())]

    return await within(outputs(), DEADLINE_S)


async def load_becomes(vllm: Running, expected: Callable[[WorkerLoad], bool]) -> WorkerLoad:
    """The load as soon as it is as `expected`. It changes with the engine's steps, which nothing announces."""
    await eventually(lambda: expected(vllm.engine.load()[0]), DEADLINE_S)
    return vllm.engine.load()[0]


def events(vllm: Running) -> list[KvEvent]:
    return [event for batch in vllm.kv_events for event in batch.events]


async def stored(vllm: Running, blocks: int) -> HashArray:
    """The blocks stored since `kv_events` was emptied, once there are that many. They come by a way of their own."""

    def hashes() -> HashArray:
        parts = [hashes_from_bytes(event.hashes) for event in events(vllm) if isinstance(event, BlockStored)]
        return sum(parts, hash_array())

    await eventually(lambda: len(hashes()) >= blocks, DEADLINE_S)
    return hashes()


PENALTIES = SamplingOptions(temperature=0.0, presence_penalty=1.5, frequency_penalty=1.0)
AS_GOOD = 0.25  # by how much two ways of computing the same logprobs may differ, in bfloat16


@pytest.mark.parametrize("sampling", [SamplingOptions(temperature=0.0), PENALTIES], ids=["plain", "penalties"])
async def test_goes_on_where_another_worker_was_lost(vllm: Running, sampling: SamplingOptions) -> None:
    """With what it was going to say itself, unless that is a matter of rounding."""
    whole = await story(vllm, sampling)
    for cut in (1, 12, 23):
        sequence = Continuation(whole.asked)
        sequence.generated.extend(whole.output.token_ids[:cut])
        sequence.begun = True
        rest = merge_outputs(await collect(vllm, sequence.request()))
        assert whole.margin(cut, rest) < AS_GOOD
        assert rest.finish_reason == whole.output.finish_reason
        assert rest.logprobs is not None
        assert len(rest.logprobs) == len(rest.token_ids) == len(whole.output.token_ids) - cut


async def test_penalties_of_what_another_worker_has_said_matter(vllm: Running) -> None:
    """Else the test above would show nothing."""
    whole = await story(vllm, PENALTIES)
    margins = []
    for cut in (8, 12, 16, 20):
        naive = request([*whole.asked.token_ids, *whole.output.token_ids[:cut]], sampling=PENALTIES)
        margins.append(whole.margin(cut, merge_outputs(await collect(vllm, naive))))
    assert max(margins) > AS_GOOD


class Whole(NamedTuple):
    asked: PreprocessedRequest
    output: LLMEngineOutput

    def margin(self, cut: int, rest: LLMEngineOutput) -> float:
        """By how much the first token that `rest` says otherwise scores lower in the whole; 0 where there is none."""
        assert self.output.logprobs is not None
        options, said = self.asked.sampling_options, Counter(self.output.token_ids[:cut])
        for place, token_id in enumerate(self.output.token_ids[cut:], cut):
            other = rest.token_ids[place - cut]
            if other != token_id:
                entry = self.output.logprobs[place]
                scores = {
                    each.token_id: each.logprob
                    - said[each.token_id] * (options.frequency_penalty or 0)
                    - bool(said[each.token_id]) * (options.presence_penalty or 0)
                    for each in (entry.chosen, *entry.top)
                }
                return scores[token_id] - scores.get(other, -math.inf)
            said[token_id] += 1
        return 0.0


async def story(vllm: Running, sampling: SamplingOptions) -> Whole:
    """Undisturbed."""
    stop, output = StopConditions(max_tokens=24, min_tokens=24), OutputOptions(logprobs=20)
    asked = request(vllm.tokens(LONG), sampling=sampling, stop=stop, output=output)
    return Whole(asked, merge_outputs(await collect(vllm, asked)))


async def test_blocks_are_named_by_the_prompts_hashes(vllm: Running) -> None:
    """As a router computes them, who knows nothing but the tokens."""
    vllm.kv_events.clear()
    prompt = (vllm.tokens(LONG) * 10)[: 3 * BLOCK_SIZE + 5]
    stop = StopConditions(max_tokens=BLOCK_SIZE, ignore_eos=True)
    answer = merge_outputs(await collect(vllm, request(prompt, stop=stop)))
    assert len(answer.token_ids) == BLOCK_SIZE

    names = sequence_hashes(token_array(prompt + answer.token_ids), BLOCK_SIZE)
    assert len(names) == 4
    assert await stored(vllm, 4) == names
    assert {batch.dp_rank for batch in vllm.kv_events} == {0}


async def test_salt_keeps_caches_apart(vllm: Running) -> None:
    vllm.kv_events.clear()
    prompt = (vllm.tokens("Tell me about salt.") * 10)[: 2 * BLOCK_SIZE + 1]
    stop = StopConditions(max_tokens=1)
    cached = []
    for salt in (None, "mine", "yours", "mine"):
        outputs = await collect(vllm, request(prompt, stop=stop, cache_salt=salt))
        cached.append(outputs[0].cached_tokens)
    assert cached == [0, 0, 0, 2 * BLOCK_SIZE]
    seeds = [block_seed(cache_salt=salt) for salt in (None, "mine", "yours")]
    names = [sequence_hashes(token_array(prompt), BLOCK_SIZE, seed) for seed in seeds]
    assert await stored(vllm, 6) == sum(names, hash_array())


async def test_reset_of_the_cache(vllm: Running) -> None:
    """vLLM says so with its next step."""
    await load_becomes(vllm, lambda load: load.running_requests == 0)
    vllm.kv_events.clear()
    assert await vllm.engine._running().reset_prefix_cache()
    await collect(vllm, request(vllm.tokens(CAPITAL) * 3, stop=StopConditions(max_tokens=1)))
    await stored(vllm, 1)
    assert isinstance(events(vllm)[0], AllBlocksCleared)


async def test_info(vllm: Running) -> None:
    assert vllm.info.context_length == CONTEXT_LENGTH
    assert vllm.info.features == frozenset(EngineFeature)
    assert vllm.info.limits.kv_block_size == BLOCK_SIZE
    assert vllm.info.limits.max_num_seqs == 8
    assert (vllm.info.limits.total_kv_blocks or 0) > 1000
    assert vllm.engine.load()[0].kv_total_blocks == vllm.info.limits.total_kv_blocks


async def test_capital_of_france(vllm: Running) -> None:
    outputs = await collect(vllm, request(vllm.tokens(CAPITAL)))

    assert "Paris" in vllm.text(outputs)
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert outputs[-1].stop_reason is None
    assert len(outputs) > 5  # it streams
    assert [output.cached_tokens for output in outputs] == [0] + [None] * (len(outputs) - 1)


async def test_eight_at_once(vllm: Running) -> None:
    before = vllm.engine.load()[0].generated_tokens

    answers = await asyncio.gather(*(collect(vllm, request(vllm.tokens(CAPITAL))) for _ in range(8)))

    assert all("Paris" in vllm.text(answer) for answer in answers)
    generated = sum(len(merge_outputs(answer).token_ids) for answer in answers)
    load = await load_becomes(vllm, lambda load: load.running_requests == 0)
    assert load.generated_tokens == before + generated


async def test_max_tokens(vllm: Running) -> None:
    outputs = await collect(vllm, request(vllm.tokens(LONG), stop=StopConditions(max_tokens=3)))

    merged = merge_outputs(outputs)
    assert len(merged.token_ids) == 3
    assert merged.finish_reason is FinishReason.LENGTH


async def test_without_max_tokens_the_context_is_the_limit(vllm: Running) -> None:
    prompt = (vllm.tokens(LONG) * CONTEXT_LENGTH)[: CONTEXT_LENGTH - 5]

    merged = merge_outputs(await collect(vllm, request(prompt, stop=StopConditions(ignore_eos=True))))

    assert len(merged.token_ids) == 5
    assert merged.finish_reason is FinishReason.LENGTH


async def test_stop_token_of_the_client(vllm: Running) -> None:
    (second,) = (await collect(vllm, request(vllm.tokens(CAPITAL))))[1].token_ids

    stop = StopConditions(max_tokens=24, stop_token_ids=[second])
    merged = merge_outputs(await collect(vllm, request(vllm.tokens(CAPITAL), stop=stop)))

    assert (merged.finish_reason, merged.stop_reason) == (FinishReason.STOP, second)
    assert merged.token_ids[-1] == second


async def test_min_tokens_and_ignore_eos(vllm: Running) -> None:
    prompt = vllm.tokens(CAPITAL)
    natural = len(merge_outputs(await collect(vllm, request(prompt))).token_ids)

    longer = await collect(vllm, request(prompt, stop=StopConditions(min_tokens=natural + 4, max_tokens=60)))
    endless = await collect(vllm, request(prompt, stop=StopConditions(ignore_eos=True, max_tokens=natural + 4)))

    assert len(merge_outputs(longer).token_ids) >= natural + 4
    assert len(merge_outputs(endless).token_ids) == natural + 4
    assert endless[-1].finish_reason is FinishReason.LENGTH


async def test_a_seed_makes_a_random_answer_repeatable(vllm: Running) -> None:
    async def answer(seed: int) -> list[int]:
        sampling = SamplingOptions(temperature=1.5, seed=seed, top_p=0.95, top_k=100, min_p=0.01)
        wanted = request(vllm.tokens(LONG), sampling=sampling, stop=StopConditions(max_tokens=8))
        return merge_outputs(await collect(vllm, wanted)).token_ids

    assert await answer(1) == await answer(1)
    assert await answer(1) != await answer(2)


async def test_logit_bias_and_penalties(vllm: Running) -> None:
    (token_id,) = vllm.tokenizer.encode("hello", add_special_tokens=False).ids
    sampling = SamplingOptions(
        temperature=0.0,
        logit_bias={token_id: 100.0},
        presence_penalty=0.1,
        frequency_penalty=0.1,
        repetition_penalty=1.01,
    )

    outputs = await collect(vllm, request(vllm.tokens(CAPITAL), sampling=sampling, stop=StopConditions(max_tokens=3)))

    assert merge_outputs(outputs).token_ids == [token_id] * 3


async def test_logprobs(vllm: Running) -> None:
    outputs = await collect(vllm, request(vllm.tokens(CAPITAL), output=OutputOptions(logprobs=3)))

    merged = merge_outputs(outputs)
    assert merged.logprobs is not None
    assert [entry.chosen.token_id for entry in merged.logprobs] == merged.token_ids
    for entry in merged.logprobs:
        assert len(entry.top) == 3
        assert entry.chosen == entry.top[0]  # greedy
        assert sorted(entry.top, key=lambda one: -one.logprob) == entry.top
        assert entry.chosen.logprob <= 0


async def test_prompt_logprobs(vllm: Running) -> None:
    prompt = vllm.tokens(CAPITAL)

    outputs = await collect(vllm, request(prompt, output=OutputOptions(prompt_logprobs=1)))

    assert all(output.prompt_logprobs is None for output in outputs[1:])
    assert outputs[0].prompt_logprobs is not None
    assert outputs[0].prompt_logprobs[0] is None
    chosen = [entry.chosen.token_id for entry in outputs[0].prompt_logprobs[1:] if entry is not None]
    assert chosen == prompt[1:]


async def test_a_repeated_prefix_needs_no_prefill(vllm: Running) -> None:
    prompt = vllm.tokens("Tell me something about the number one thousand and three. " * 6)
    wanted = request(prompt, stop=StopConditions(max_tokens=2))

    first = await collect(vllm, wanted)
    second = await collect(vllm, wanted)

    assert first[0].cached_tokens == 0
    assert second[0].cached_tokens == (len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE


async def test_json_schema(vllm: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
        "additionalProperties": False,
    }
    guided = GuidedDecoding(json_schema=json.dumps(schema))

    outputs = await collect(vllm, request(vllm.tokens(CAPITAL), guided=guided, stop=StopConditions(max_tokens=200)))

    answer = json.loads(vllm.text(outputs))
    assert answer.keys() == {"city", "large"}
    assert isinstance(answer["large"], bool)


async def test_json_object(vllm: Running) -> None:
    outputs = await collect(
        vllm,
        request(vllm.tokens(CAPITAL), guided=GuidedDecoding(json_object=True), stop=StopConditions(max_tokens=8)),
    )

    assert vllm.text(outputs).lstrip().startswith("{")


@pytest.mark.parametrize("schema", ['{"type": "nonsense"}', "no JSON", "", '{"$ref": "#/nowhere"}', "[" * 100])
async def test_a_wrong_schema_is_the_clients_mistake(vllm: Running, schema: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await collect(vllm, request(vllm.tokens(CAPITAL), guided=GuidedDecoding(json_schema=schema)))

    assert caught.value.param == "response_format"
    assert "Paris" in vllm.text(await collect(vllm, request(vllm.tokens(CAPITAL))))  # it lives


async def test_a_prompt_that_does_not_fit(vllm: Running) -> None:
    with pytest.raises(ContextLengthExceededError, match=rf"{CONTEXT_LENGTH} tokens.*{CONTEXT_LENGTH} tokens"):
        await collect(vllm, request([5] * CONTEXT_LENGTH))


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        (request([]), "prompt"),
        (request([5], sampling=SamplingOptions(temperature=-1.0)), "temperature"),
        (request([5], sampling=SamplingOptions(logit_bias={10**7: 1.0})), "logit_bias"),
        (request([5], stop=StopConditions(max_tokens=0)), "max_tokens"),
        (request([5], output=OutputOptions(logprobs=1000)), "logprobs"),
        (request([10**7]), None),
        (request([5], dp_rank=3), None),
    ],
)
async def test_what_vllm_refuses_is_the_clients_mistake(
    vllm: Running, wrong: PreprocessedRequest, param: str | None
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await collect(vllm, wrong)

    assert caught.value.param == param


async def test_abort_ends_the_stream_and_frees_the_slot(vllm: Running) -> None:
    context = Context()
    outputs = []

    async for output in vllm.engine.generate(endless(vllm), context):
        outputs.append(output)
        if len(outputs) == 3:
            await vllm.engine.abort(context.id())

    assert [output.finish_reason for output in outputs] == [None] * (len(outputs) - 1) + [FinishReason.CANCELLED]
    await load_becomes(vllm, lambda load: (load.running_requests, load.kv_used_blocks) == (0, 0))


async def test_closing_the_stream_frees_the_slot(vllm: Running) -> None:
    stream = vllm.engine.generate(endless(vllm), Context())
    await anext(stream)
    await load_becomes(vllm, lambda load: load.running_requests == 1 and load.kv_used_blocks > 0)
    closed_s = time.monotonic()

    await stream.aclose()  # type: ignore[attr-defined] # it is a generator

    await load_becomes(vllm, lambda load: (load.running_requests, load.kv_used_blocks) == (0, 0))
    assert time.monotonic() - closed_s < 1


async def test_cancelling_the_task_frees_the_slot(vllm: Running) -> None:
    task = asyncio.create_task(collect(vllm, endless(vllm)))
    await load_becomes(vllm, lambda load: load.running_requests == 1)

    task.cancel()

    await asyncio.gather(task, return_exceptions=True)
    await load_becomes(vllm, lambda load: load.running_requests == 0)


async def test_requests_beyond_max_num_seqs_wait(vllm: Running) -> None:
    tasks = [asyncio.create_task(collect(vllm, endless(vllm))) for _ in range(10)]
    try:
        await load_becomes(vllm, lambda load: (load.running_requests, load.waiting_requests) == (8, 2))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await load_becomes(vllm, lambda load: (load.running_requests, load.waiting_requests) == (0, 0))


async def test_abort_of_an_unknown_request(vllm: Running) -> None:
    await vllm.engine.abort("never seen")


async def test_a_request_that_was_stopped_before_it_began(vllm: Running) -> None:
    context = Context()
    context.stop_generating()

    outputs = await collect(vllm, endless(vllm), context)

    assert outputs == [LLMEngineOutput(finish_reason=FinishReason.CANCELLED)]


async def test_hung_engine_is_noticed_busy_or_idle(vllm: Running) -> None:
    told: list[str] = []

    async def on_stall() -> None:
        told.append("stall")

    async def on_recovery() -> None:
        told.append("recovery")

    vitals = EngineVitals(vllm.engine, "smollm2", lambda: pytest.fail("vLLM counts its steps"))
    watchdog = Watchdog(vitals, on_stall, on_recovery, canary_interval_s=1, stall_s=5)
    watching = asyncio.create_task(watchdog.run())
    before = len(events(vllm))
    steps = vllm.engine.load()[0].steps or 0
    await load_becomes(vllm, lambda load: (load.steps or 0) > steps)  # a canary's
    for busy in (False, True):
        told.clear()
        stream = vllm.engine.generate(endless(vllm), Context())
        if busy:
            await anext(stream)
        _signal_engine(signal.SIGSTOP)
        try:
            await eventually(lambda: told == ["stall"], DEADLINE_S)
        finally:
            _signal_engine(signal.SIGCONT)
        await eventually(lambda: told == ["stall", "recovery"], DEADLINE_S)
        if not busy:
            assert len(events(vllm)) == before  # a canary fills no block
        await stream.aclose()  # type: ignore[attr-defined]
    watching.cancel()
    await asyncio.wait([watching])


def _signal_engine(number: signal.Signals) -> None:
    for pid in engine_processes():
        os.kill(pid, number)


async def test_death_of_the_engine_is_told(vllm: Running) -> None:
    """The last test: the engine does not come back."""
    failure = asyncio.create_task(vllm.engine.failed())
    stream = vllm.engine.generate(endless(vllm), Context())
    await anext(stream)
    assert not failure.done()

    for pid in engine_processes():
        os.kill(pid, signal.SIGKILL)

    with pytest.raises(ConnectionLostError):
        await within(exhaust(stream), 5)
    assert "died" in await within(failure, 5)
    with pytest.raises(ConnectionLostError):
        await collect(vllm, request(vllm.tokens(CAPITAL)))


def endless(vllm: Running) -> PreprocessedRequest:
    return request(vllm.tokens(LONG), stop=StopConditions(ignore_eos=True))


async def exhaust(stream: AsyncIterator[LLMEngineOutput]) -> None:
    async for _ in stream:
        pass
