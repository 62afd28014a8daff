"""A prefill worker that ends while it holds what it has prefilled; there is no frontend between the processes."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from dynamo.errors import HandoffLostError
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, StopConditions
from dynamo.runtime.client import Client
from dynamo.testing import Program, within
from dynamo.testing.deployment import Deployment
from dynamo.tokens import token_array

from .load import loads
from .served import MOCK

pytestmark = pytest.mark.asyncio(loop_scope="session")

FLAGS = ("--speedup-ratio", "10", "--block-size", "16", "--num-gpu-blocks-override", "256")
PREFILL, DECODE = ("--disaggregation-mode", "prefill"), ("--disaggregation-mode", "decode")
ONE_AT_A_TIME = ("--max-num-seqs", "1")
SECONDS = 10_000  # milliseconds of simulated time, ten times as fast


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One worker of each role, and who asks them."""

    prefill: Program
    to_prefill: Client
    to_decode: Client


@asynccontextmanager
async def pair(deployment: Deployment, model: Path, *, transfer_s: float) -> AsyncIterator[Pair]:
    """The decode worker has room for one request, and a transfer takes so long."""
    slow = ("--kv-transfer-latency", str(transfer_s * SECONDS))
    prefill, _ = await asyncio.gather(
        deployment.mocker(model, MOCK, *PREFILL, *FLAGS, *slow),
        deployment.mocker(model, MOCK, *DECODE, *FLAGS, *slow, *ONE_AT_A_TIME),
    )
    runtime = deployment.runtime()
    try:
        to_prefill, to_decode = [
            await runtime.endpoint(path).client(response_type=LLMEngineOutput)
            for path in ("dynamo.prefill.generate", "dynamo.backend.generate")
        ]
        await within(asyncio.gather(to_prefill.wait_for_instances(), to_decode.wait_for_instances()))
        yield Pair(prefill=prefill, to_prefill=to_prefill, to_decode=to_decode)
    finally:
        await runtime.close()


@asynccontextmanager
async def prefilled(pair: Pair, first_token: int) -> AsyncIterator[PreprocessedRequest]:
    """The decode leg of a request; the stream of its prefill leg is open within the block."""
    request = PreprocessedRequest(
        model=MOCK,
        token_ids=token_array(range(first_token, first_token + 200)),
        stop_conditions=StopConditions(max_tokens=30, ignore_eos=True),
    )
    stream = await pair.to_prefill.generate(msgspec.structs.replace(request, prefill_only=True), annotated=False)
    async with aclosing(stream):
        output: LLMEngineOutput = await within(anext(stream))
        yield msgspec.structs.replace(request, handoff=output.handoff)


async def answer(client: Client, request: PreprocessedRequest) -> list[LLMEngineOutput]:
    async def collect() -> list[LLMEngineOutput]:
        return [output async for output in await client.generate(request, annotated=False)]

    return await within(collect())


async def test_told_to_stop_it_waits_for_those_who_come(own: Deployment, tiny_model: Path) -> None:
    """One fetches, and one waits for its turn to."""
    async with (
        pair(own, tiny_model, transfer_s=0.5) as workers,
        loads(own) as decode,
        prefilled(workers, 0) as first,
        prefilled(workers, 200) as second,
    ):
        decoding = [asyncio.create_task(answer(workers.to_decode, leg)) for leg in (first, second)]
        await decode.until(2, seconds=10)
        workers.prefill.signal(signal.SIGTERM)
        await workers.prefill.line("SIGTERM")
        for outputs in await asyncio.gather(*decoding):
            assert outputs[0].cached_tokens == 199
            assert outputs[-1].finish_reason is FinishReason.LENGTH
        assert await workers.prefill.exit_code() == 0


async def test_killed_nothing_comes_of_what_it_held(own: Deployment, tiny_model: Path) -> None:
    async with (
        pair(own, tiny_model, transfer_s=1.0) as workers,
        loads(own) as decode,
        prefilled(workers, 0) as first,
        prefilled(workers, 200) as second,
    ):
        decoding = [asyncio.create_task(answer(workers.to_decode, leg)) for leg in (first, second)]
        await decode.until(2, seconds=10)
        workers.prefill.signal(signal.SIGKILL)
        for ended in await asyncio.gather(*decoding, return_exceptions=True):
            assert isinstance(ended, HandoffLostError)
        await decode.until_idle(seconds=2.0)
