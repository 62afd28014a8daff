"""Disaggregated serving with a real model: one vLLM prefills, one decodes, and a third that does both is the reference.

All compute in float32: where bfloat16 rounds, a prompt's last token computed alone may lead to another answer than
computed with the rest.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

from dynamo.engines.vllm.ownership import descendants
from dynamo.errors import HandoffLostError, InvalidRequestError
from dynamo.protocols.disagg import Handoff
from dynamo.protocols.generation import (
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    merge_outputs,
)
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.client import Client
from dynamo.runtime.context import Context
from dynamo.runtime.process import READY
from dynamo.testing import Program
from dynamo.testing.deployment import deployment
from dynamo.testing.waiting import within
from dynamo.tokens import token_array
from dynamo.transfer import nixl_library

from .load import Loads, loads
from .prompts import prompts
from .raw_http import get
from .roles import Roles, roles
from .served import until_served

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not nixl_library.is_installed(), reason=f"NIXL is not installed: {nixl_library.INSTALL}"),
]

MODEL, REFERENCE = "smollm2", "reference"
START_S = 600.0  # three at once, on two cores that others use too
ANSWER_S = 60.0
IDLE_S = 8.0  # a first handshake may have to wait 5 s
LEASE_S = 15
SEATS = 2
GENERATED = 32
FLAGS = (
    *("--dtype", "float32", "--kv-cache-memory-bytes", str(512 << 20)),
    *("--max-num-seqs", str(SEATS), "--kv-handoff-timeout", str(LEASE_S)),
    "--changeable-role",
    *("--max-num-batched-tokens", "256"),  # a long prompt takes several steps, after each of which vLLM tells its load
)
# As many threads as the others have on a small machine, and where the prefill worker has its own.
ONE_THREAD = {"VLLM_CPU_OMP_THREADS_BIND": str(min(os.sched_getaffinity(0)))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One of the two roles, reached without a frontend."""

    program: Program
    client: Client
    loads: Loads
    system: str  # URL

    async def generate(self, request: PreprocessedRequest, context: Context | None = None) -> LLMEngineOutput:
        """All of the answer."""
        (instance_id,) = await self.client.wait_for_instances()
        outputs = await self.client.direct(request, instance_id, annotated=False, context=context)
        return await within(_merged(outputs), ANSWER_S)

    async def transfers(self, name: str, **labels: str) -> float:
        """A dynamo_component_kv_transfer_ metric."""
        text = (await get(self.system, "/metrics")).body.decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        wanted = f"dynamo_component_kv_transfer_{name}"
        return sum(s.value for s in samples if s.name == wanted and labels.items() <= s.labels.items())


async def _merged(outputs: AsyncIterator[LLMEngineOutput]) -> LLMEngineOutput:
    return merge_outputs([output async for output in outputs])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client gets."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    reason: str | None  # why the prompt was prefilled where it was


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    openai: AsyncOpenAI
    prefill: Worker
    decode: Worker
    roles: Roles
    url: str

    async def ask(self, prompt: str, model: str = MODEL) -> Answer:
        answer = await self.openai.completions.create(
            model=model,
            prompt=prompt,
            max_tokens=GENERATED,
            temperature=0,
            extra_body={"ignore_eos": True, "nvext": {"extra_fields": ["routing"]}},
        )
        assert answer.usage is not None
        details = answer.usage.prompt_tokens_details
        disagg = ((answer.model_extra or {}).get("nvext") or {}).get("disaggregation") or {}
        return Answer(
            text=answer.choices[0].text,
            prompt_tokens=answer.usage.prompt_tokens,
            cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
            reason=disagg.get("reason"),
        )

    async def change_places(self) -> None:
        """Who prefills decodes from now on, and the other way round. The prefill worker is `prefill`, and so on."""
        (prefill,), (decode,) = self.prefill.client.instance_ids(), self.decode.client.instance_ids()
        began_s = time.monotonic()
        await self.roles.ask(prefill, WorkerType.Decode)
        await self.roles.ask(decode, WorkerType.Prefill)
        print(f"changing places took {time.monotonic() - began_s:.3f} s")
        for client, instance_id in ((self.prefill.client, decode), (self.decode.client, prefill)):
            while client.instance_ids() != [instance_id]:
                await within(client.wait_for_change())
        await until_served(self.url, 3)

    async def until_idle(self) -> None:
        """No request, and no block in use; of a lease that runs out nobody waits for the end here."""
        await self.decode.loads.until_idle(IDLE_S)
        await self.prefill.loads.until_idle(IDLE_S)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(smollm2_dir: Path) -> AsyncIterator[Served]:
    async with deployment() as started:

        async def vllm(*flags: str, **environ: str) -> Program:
            arguments = ["-m", "dynamo.vllm", "--model", str(smollm2_dir), *FLAGS, *flags]
            return await started.python(*arguments, environ={"DYN_SYSTEM_PORT": "0"} | environ)

        prefill = await vllm("--served-model-name", MODEL, "--disaggregation-mode", "prefill")
        decode = await vllm("--served-model-name", MODEL, "--disaggregation-mode", "decode")
        reference = await vllm("--served-model-name", REFERENCE, "--namespace", "reference", **ONE_THREAD)
        _, url = await started.frontend()
        for program in (prefill, decode, reference):
            await program.line(READY, START_S)
        await until_served(url, 3)
        runtime = started.runtime()

        async def worker(program: Program, component: str, asked: Loads) -> Worker:
            endpoint = runtime.endpoint(f"dynamo.{component}.generate")
            return Worker(
                program=program,
                client=await endpoint.client(response_type=LLMEngineOutput),
                loads=asked,
                system=(await program.line("system server on")).split()[-1],
            )

        async with (
            loads(started, component="prefill") as prefill_loads,
            loads(started) as decode_loads,
            roles(started) as asked,
            AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120, max_retries=0) as openai,
        ):
            try:
                yield Served(
                    openai=openai,
                    prefill=await worker(prefill, "prefill", prefill_loads),
                    decode=await worker(decode, "backend", decode_loads),
                    roles=asked,
                    url=url,
                )
            finally:
                await runtime.close()


def prefill_of(token_ids: list[int]) -> PreprocessedRequest:
    return PreprocessedRequest(
        model=MODEL,
        token_ids=token_array(token_ids),
        stop_conditions=StopConditions(max_tokens=1, ignore_eos=True),
        prefill_only=True,
    )


def decode_of(token_ids: list[int], handoff: Handoff | None, max_tokens: int = 4) -> PreprocessedRequest:
    return PreprocessedRequest(
        model=MODEL,
        token_ids=token_array(token_ids),
        sampling_options=SamplingOptions(temperature=0.0),
        stop_conditions=StopConditions(max_tokens=max_tokens, ignore_eos=True),
        handoff=handoff,
    )


def tokens(start: int, count: int) -> list[int]:
    """A prompt that no other test has."""
    return list(range(start, start + count))


@contextmanager
def halted(program: Program) -> Iterator[None]:
    """None of its processes moves."""
    pids = [program.pid, *descendants(program.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def test_cancel_while_the_cache_is_fetched(served: Served) -> None:
    """The first of all: the decode worker has to be introduced to the prefill worker, who does not answer."""
    prompt = tokens(1000, 100)
    handoff = (await served.prefill.generate(prefill_of(prompt))).handoff
    context = Context()
    with halted(served.prefill.program):
        decoding = asyncio.create_task(served.decode.generate(decode_of(prompt, handoff), context))
        await served.decode.loads.until(1, IDLE_S)
        context.stop_generating()
        answer = await decoding
    assert (answer.token_ids, answer.finish_reason) == ([], FinishReason.CANCELLED)
    await served.until_idle()


async def test_answers_are_those_of_an_aggregated_worker(served: Served) -> None:
    """And the prompts' KV caches came by transfer: nothing was prefilled where it was decoded."""
    before = {name: await served.decode.transfers(name) for name in ("tokens_total", "bytes_total", "seconds_count")}

    async def in_turn(model: str) -> list[Answer]:
        return [await served.ask(prompt, model) for prompt in prompts()]

    answers, expected = await asyncio.gather(in_turn(MODEL), in_turn(REFERENCE))
    assert [answer.text for answer in answers] == [answer.text for answer in expected]
    assert {answer.reason for answer in answers} == {"unconditional"}
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    after = {name: await served.decode.transfers(name) - value for name, value in before.items()}
    assert after["tokens_total"] == prompt_tokens
    assert after["seconds_count"] == len(prompts())
    assert after["bytes_total"] >= prompt_tokens * 2 * 30 * 3 * 64 * 4  # K and V, layers, heads, their size, float32
    assert await served.decode.transfers("results_total", result="failed") == 0
    await served.until_idle()


async def test_what_came_by_transfer_is_cached(served: Served) -> None:
    prompt = tokens(2000, 100)
    handoff = (await served.prefill.generate(prefill_of(prompt))).handoff
    answer = await served.decode.generate(decode_of(prompt, handoff))
    assert answer.cached_tokens == 100  # the last is computed again, and no other

    again = await served.decode.generate(decode_of(prompt, None))
    assert again.cached_tokens == 96  # whole blocks of what was fetched
    assert again.token_ids == answer.token_ids


async def test_a_request_that_is_refused_gives_the_cache_back(served: Served) -> None:
    prompt = tokens(7000, 100)
    handoff = (await served.prefill.generate(prefill_of(prompt))).handoff
    wrong = decode_of(prompt, handoff)
    wrong.sampling_options.temperature = -1.0
    with pytest.raises(InvalidRequestError):
        await served.decode.generate(wrong)
    await served.until_idle()


async def test_cancel_during_prefill(served: Served) -> None:
    asking = asyncio.create_task(served.ask("Nobody waits for the end of this. " * 200))
    await served.prefill.loads.until(1, IDLE_S)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await served.until_idle()


async def test_cancel_during_decode(served: Served) -> None:
    stream = await served.openai.completions.create(
        model=MODEL, prompt="A story without an end. ", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))
    await stream.close()
    await served.until_idle()


async def test_cancel_while_it_waits_for_its_turn(served: Served) -> None:
    """The prefill worker frees at once what nobody will fetch."""
    prompt = tokens(3000, 100)
    others = [Context() for _ in range(SEATS)]
    running = [
        asyncio.create_task(served.decode.generate(decode_of(tokens(4000 + 100 * n, 40), None, 1500), context))
        for n, context in enumerate(others)
    ]
    await served.decode.loads.until(SEATS, IDLE_S)
    context = Context()
    handoff = (await served.prefill.generate(prefill_of(prompt))).handoff
    decoding = asyncio.create_task(served.decode.generate(decode_of(prompt, handoff), context))
    await served.decode.loads.until(SEATS + 1, IDLE_S)
    context.stop_generating()
    assert (await decoding).finish_reason is FinishReason.CANCELLED
    await served.prefill.loads.until_idle(IDLE_S)
    for each in others:
        each.stop_generating()
    await asyncio.gather(*running)
    await served.until_idle()


async def test_cancel_before_it_comes_to_the_decode_worker(served: Served) -> None:
    """The lease ends, and what it was for is not fetched any more."""
    prompt = tokens(5000, 100)
    expired = await served.prefill.transfers("expired_total")
    handoff = (await served.prefill.generate(prefill_of(prompt))).handoff
    assert (await served.prefill.loads.ranks())[0].kv_used_blocks == 4
    await served.prefill.loads.until_idle(LEASE_S + IDLE_S)
    assert await served.prefill.transfers("expired_total") == expired + 1
    with pytest.raises(HandoffLostError):
        await served.decode.generate(decode_of(prompt, handoff))
    assert (await served.ask("What now?")).reason == "unconditional"


async def test_the_two_change_places(served: Served) -> None:
    """And back, with their weights and their caches, what they hold for others among it."""
    question = "What have you got in your pocket? " * 20
    before = await served.ask(question)
    held = tokens(8000, 100)
    handoff = (await served.prefill.generate(prefill_of(held))).handoff
    await served.change_places()
    await served.change_places()
    answer = await served.decode.generate(decode_of(held, handoff))
    assert answer.cached_tokens == 100

    for _ in range(2):
        await served.change_places()
        after = await served.ask(question)
        assert (after.text, after.reason) == (before.text, "unconditional")
        assert after.cached_tokens >= after.prompt_tokens - 32  # one block at most is prefilled anew
    await served.until_idle()


async def test_prefill_worker_is_killed(served: Served) -> None:
    """The last test. In the middle of one request's prefill, and while it holds another one's cache."""
    held = tokens(6000, 100)
    handoff = (await served.prefill.generate(prefill_of(held))).handoff
    prompt = "Somebody will answer this. " * 150
    asking = asyncio.create_task(served.ask(prompt))
    await served.prefill.loads.until(1, IDLE_S)
    served.prefill.program.signal(signal.SIGKILL)
    answer, expected = await asyncio.gather(asking, served.ask(prompt, REFERENCE))
    assert answer.reason == "prefill_failed"
    assert answer.text == expected.text
    with pytest.raises(HandoffLostError):
        await served.decode.generate(decode_of(held, handoff))
    assert len((await served.decode.generate(decode_of(held, None))).token_ids) == 4
    assert (await served.ask("Still there?")).reason in (None, "no_prefill_worker")
    await served.decode.loads.until_idle(IDLE_S)
