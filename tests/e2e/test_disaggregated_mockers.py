"""Prefill and decode workers as processes, of which the first may die; there is no frontend between them."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from dynamo.errors import HandoffLostError
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest, StopConditions
from dynamo.protocols.load import LOAD_ENDPOINT, WorkerLoad
from dynamo.runtime.client import Client
from dynamo.testing import Program, within
from dynamo.testing.deployment import Deployment
from dynamo.tokens import token_array

pytestmark = pytest.mark.asyncio(loop_scope="session")

FLAGS = ("--speedup-ratio", "10", "--block-size", "16", "--num-gpu-blocks-override", "256")
REAL_BYTES = ("--kv-transfer", "bytes", "--kv-bytes-per-token", "16384")
TWO_SECONDS = ("--kv-transfer-latency", "20000")  # of simulated time, ten times as fast


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One worker of each role, and who asks them."""

    prefill: Program
    to_prefill: Client
    to_decode: Client
    to_decode_load: Client

    async def prefilled(self, request: PreprocessedRequest) -> PreprocessedRequest:
        (output,) = await outputs(self.to_prefill, msgspec.structs.replace(request, prefill_only=True))
        return msgspec.structs.replace(request, handoff=output.handoff)

    async def decode_load(self) -> WorkerLoad:
        (worker,) = self.to_decode_load.instance_ids()
        (load,) = [load async for load in await self.to_decode_load.direct(None, worker, annotated=False)]
        only: WorkerLoad = load[0]
        return only


async def outputs(client: Client, request: PreprocessedRequest) -> list[LLMEngineOutput]:
    async def collect() -> list[LLMEngineOutput]:
        return [output async for output in await client.generate(request, annotated=False)]

    return await within(collect())


def tokens(answer: list[LLMEngineOutput]) -> list[int]:
    return [token_id for output in answer for token_id in output.token_ids]


@asynccontextmanager
async def pair(deployment: Deployment, model: Path, *flags: str) -> AsyncIterator[Pair]:
    prefill, _ = await asyncio.gather(
        *(
            deployment.mocker(model, "m", "--disaggregation-mode", role, *FLAGS, *flags)
            for role in ("prefill", "decode")
        )
    )
    runtime = deployment.runtime()
    try:
        clients = [
            await runtime.endpoint(path).client(response_type=response_type)
            for path, response_type in [
                ("dynamo.prefill.generate", LLMEngineOutput),
                ("dynamo.backend.generate", LLMEngineOutput),
                (f"dynamo.backend.{LOAD_ENDPOINT}", list[WorkerLoad]),
            ]
        ]
        for client in clients:
            await within(client.wait_for_instances())
        yield Pair(prefill=prefill, to_prefill=clients[0], to_decode=clients[1], to_decode_load=clients[2])
    finally:
        await runtime.close()


REQUEST = PreprocessedRequest(
    model="m", token_ids=token_array(range(200)), stop_conditions=StopConditions(max_tokens=30, ignore_eos=True)
)


@pytest.mark.parametrize("flags", [(), REAL_BYTES], ids=["modelled", "real"])
async def test_disaggregated_and_then_without_the_prefill_worker(
    own: Deployment, tiny_model: Path, flags: tuple[str, ...]
) -> None:
    async with pair(own, tiny_model, *flags) as workers:
        disaggregated = await outputs(workers.to_decode, await workers.prefilled(REQUEST))
        assert disaggregated[0].cached_tokens == 199

        other = msgspec.structs.replace(REQUEST, token_ids=token_array(range(1000, 1200)))
        leg = await workers.prefilled(other)
        workers.prefill.signal(signal.SIGKILL)
        await workers.prefill.exit_code()
        with pytest.raises(HandoffLostError):
            await outputs(workers.to_decode, leg)
        alone = await outputs(workers.to_decode, other)
        assert alone[0].cached_tokens == 0, "nothing of it had come"
        assert tokens(await outputs(workers.to_decode, REQUEST)) == tokens(disaggregated)


async def test_killed_while_it_sends(own: Deployment, tiny_model: Path) -> None:
    async with pair(own, tiny_model, *TWO_SECONDS) as workers:
        decoding = asyncio.create_task(outputs(workers.to_decode, await workers.prefilled(REQUEST)))
        async with asyncio.timeout(10):
            while not (await workers.decode_load()).kv_used_blocks:  # the transfer has not begun
                pass
        workers.prefill.signal(signal.SIGKILL)
        with pytest.raises(HandoffLostError):
            await decoding
        load = await workers.decode_load()
        assert (load.kv_used_blocks, load.waiting_requests, load.running_requests) == (0, 0, 0)
