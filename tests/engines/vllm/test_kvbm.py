"""vLLM with SmolLM2 and a cache of two prompts: what it forgets comes back from the block manager, as it was.

Two engines and one service, started once for all tests; the last one kills the service.
"""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import pytest
import pytest_asyncio

from dynamo.engines.vllm.args import parse_command_line
from dynamo.protocols.generation import (
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    merge_outputs,
)
from dynamo.runtime.context import Context
from dynamo.runtime.process import READY
from dynamo.testing.deployment import Deployment, deployment
from dynamo.testing.program import Program
from dynamo.testing.waiting import within
from dynamo.tokens import token_array

if TYPE_CHECKING:
    from dynamo.engines.vllm.engine import VllmEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # importing vLLM and torch warns a lot
]

BLOCK_SIZE = 32
BLOCK_BYTES = 30 * 2 * 3 * 64 * 2 * BLOCK_SIZE  # layers, keys and values, heads, their size, bfloat16
DEVICE_BLOCKS = 17  # one of them is vLLM's own
PROMPT_TOKENS = 7 * BLOCK_SIZE + 5
CACHED_TOKENS = 7 * BLOCK_SIZE
DEADLINE_S = 120.0


class Answer(NamedTuple):
    cached_tokens: int
    token_ids: list[int]


class Service:
    """One that can be killed and started again, at the same socket."""

    def __init__(self, started: Deployment) -> None:
        self._deployment = started
        self.socket = started.directory / "kvbm" / "kvbm.sock"
        self._program: Program | None = None

    async def start(self) -> None:
        flags = ["--kvbm-socket", str(self.socket), "--system-port", "-1"]
        self._program = await self._deployment.python("-m", "dynamo.kvbm", *flags)
        await self._program.line(READY, DEADLINE_S)

    async def kill(self) -> None:
        assert self._program is not None
        self._program.signal(signal.SIGKILL)
        await self._program.exit_code()


class Running(NamedTuple):
    engine: "VllmEngine"
    other: "VllmEngine"
    service: Service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vllm(smollm2_dir: Path) -> AsyncIterator[Running]:
    async with deployment() as started:
        service = Service(started)
        await service.start()
        with mock.patch.dict(os.environ):  # vLLM writes to it
            engines = [_engine(smollm2_dir, service.socket) for _ in range(2)]
            try:
                await asyncio.gather(*(engine.start() for engine in engines))
                yield Running(engines[0], engines[1], service)
            finally:
                await asyncio.gather(*(engine.cleanup() for engine in engines))


def _engine(model: Path, socket: Path) -> "VllmEngine":
    """Each parse makes an owner of its own: two workers."""
    flags = ["--model", str(model), "--max-model-len", str(DEVICE_BLOCKS * BLOCK_SIZE - BLOCK_SIZE)]
    flags += [
        "--kv-cache-memory-bytes",
        str(DEVICE_BLOCKS * BLOCK_BYTES),
        "--kvbm-host-gb",
        "0.3",
        "--kvbm-socket",
        str(socket),
    ]
    _, config = parse_command_line(flags)
    from dynamo.engines.vllm.engine import VllmEngine

    return VllmEngine(config)


def prompt(number: int) -> list[int]:
    chance = random.Random(number)
    return [chance.randrange(100, 40_000) for _ in range(PROMPT_TOKENS)]


async def ask(engine: "VllmEngine", number: int, tokens: int = 8) -> Answer:
    request = PreprocessedRequest(
        model="smollm2",
        token_ids=token_array(prompt(number)),
        sampling_options=SamplingOptions(temperature=0.0),
        stop_conditions=StopConditions(max_tokens=tokens, ignore_eos=True),
        eos_token_ids=[2],
    )

    async def outputs() -> list[LLMEngineOutput]:
        return [output async for output in engine.generate(request, Context())]

    collected = await within(outputs(), DEADLINE_S)
    return Answer(collected[0].cached_tokens or 0, merge_outputs(collected).token_ids)


async def reference(engine: "VllmEngine", number: int) -> Answer:
    """With what the device itself has. To compute all of a prompt at once rounds otherwise than to compute its rest."""
    cold = await ask(engine, number)
    warm = await ask(engine, number)
    assert (cold.cached_tokens, warm.cached_tokens) == (0, CACHED_TOKENS)
    return warm


async def test_what_the_device_has_forgotten_is_loaded_as_it_was(vllm: Running) -> None:
    first = [await reference(vllm.engine, number) for number in range(4)]  # more than there is room for
    again = [await ask(vllm.engine, number) for number in range(4)]
    assert again == first


async def test_another_engine_finds_it(vllm: Running) -> None:
    own = await reference(vllm.engine, 10)
    await ask(vllm.engine, 11)  # the copies of the one before are through by now
    assert await ask(vllm.other, 10) == own


async def test_under_pressure_nothing_is_mixed_up(vllm: Running) -> None:
    """Requests that are preempted and aborted, their blocks given to others while they are copied."""
    first = {number: await reference(vllm.engine, number) for number in range(20, 24)}
    crowd = [asyncio.create_task(ask(vllm.engine, number % 4 + 20, 64)) for number in range(10)]
    for number in (2, 5, 6):
        crowd[number].cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    assert sum(task.done() and not task.cancelled() and len(task.result().token_ids) == 64 for task in crowd) == 7
    for engine in (vllm.engine, vllm.other):
        for number, answer in first.items():
            assert await ask(engine, number) == answer


async def test_the_service_dies_and_another_takes_over(vllm: Running) -> None:
    before = await reference(vllm.engine, 30)
    await vllm.service.kill()
    others = [await ask(vllm.engine, number) for number in (31, 32, 33)]
    others.append(await ask(vllm.engine, 30))  # nobody has it any more
    assert [answer.cached_tokens for answer in others] == [0] * 4

    await vllm.service.start()
    for number in (31, 30, 32, 33):  # the engine notices as it goes, and fills the new one
        await ask(vllm.engine, number)
    await ask(vllm.other, 34)  # had nothing to do since, and notices only now
    assert await ask(vllm.other, 30) == before
    assert await ask(vllm.engine, 30) == before
