"""vLLM with SmolLM2 and a cache of two prompts: what it forgets comes back from the block manager, as it was.

Two engines and one service, started once for all tests; the last ones kill the service, and the engines.
"""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import pytest
import pytest_asyncio

from dynamo.engines.vllm.args import parse_command_line
from dynamo.errors import ConnectionLostError
from dynamo.kvbm.admin import ask as ask_service
from dynamo.protocols.generation import (
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    merge_outputs,
)
from dynamo.protocols.kvbm import Clear, Done, Figures, Inspect, PoolFigures, StorageTier, Verify
from dynamo.runtime.context import Context
from dynamo.runtime.process import READY
from dynamo.testing.deployment import Deployment, deployment
from dynamo.testing.program import Program
from dynamo.testing.waiting import eventually, within
from dynamo.tokens import token_array

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
BLOCK_BYTES = 30 * 2 * 3 * 64 * 2 * BLOCK_SIZE  # layers, keys and values, heads, their size, bfloat16
DEVICE_BLOCKS = 17  # one of them is vLLM's own
PROMPT_TOKENS = 7 * BLOCK_SIZE + 5
CACHED_TOKENS = 7 * BLOCK_SIZE
DEADLINE_S = 120.0
HALT = "DYN_TEST_HALT"  # as halting_connector reads it


class Answer(NamedTuple):
    cached_tokens: int
    token_ids: list[int]


class Service:
    """One that can be killed and started again, at the same socket."""

    def __init__(self, started: Deployment) -> None:
        self._deployment = started
        self.socket = started.directory / "kvbm" / "kvbm.sock"
        self.disk = started.directory / "disk"
        self._program: Program | None = None

    async def start(self) -> None:
        flags = ["--kvbm-socket", str(self.socket), "--system-port", "-1"]
        self._program = await self._deployment.python("-m", "dynamo.kvbm", *flags)
        await self._program.line(READY, DEADLINE_S)

    async def kill(self) -> None:
        assert self._program is not None
        self._program.signal(signal.SIGKILL)
        await self._program.exit_code()

    def pool(self) -> PoolFigures:
        """The only one. Blocks."""
        figures = ask_service(self.socket, Inspect(), DEADLINE_S)
        assert isinstance(figures, Figures)
        (pool,) = figures.pools
        return pool

    def is_still(self) -> bool:
        """Whether nobody has or moves anything of the pool. Blocks."""
        pool = self.pool()
        return (pool.engines, pool.held_slots, sum(tier.queued for tier in pool.tiers)) == (0, 0, 0)


class Running(NamedTuple):
    engine: "VllmEngine"
    other: "VllmEngine"
    service: Service
    halt: Path  # see halting_connector


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vllm(smollm2_dir: Path) -> AsyncIterator[Running]:
    async with deployment() as started:
        service = Service(started)
        await service.start()
        halt = started.directory / "halt"
        halt.mkdir()
        with (
            mock.patch.dict(os.environ, {HALT: str(halt)}),  # vLLM writes to it, too
            mock.patch.object(sys, "path", [*sys.path, str(Path(__file__).parent)]),
            mock.patch("dynamo.engines.vllm.kvbm_settings.CONNECTOR_MODULE", "halting_connector"),
        ):
            engines = [_engine(smollm2_dir, service) for _ in range(2)]
            try:
                await asyncio.gather(*(engine.start() for engine in engines))
                yield Running(engines[0], engines[1], service, halt)
            finally:
                await asyncio.gather(*(engine.cleanup() for engine in engines))


def _engine(model: Path, service: Service) -> "VllmEngine":
    """Each parse makes an owner of its own: two workers."""
    flags = ["--model", str(model), "--max-model-len", str(DEVICE_BLOCKS * BLOCK_SIZE - BLOCK_SIZE)]
    flags += ["--kv-cache-memory-bytes", str(DEVICE_BLOCKS * BLOCK_BYTES), "--kvbm-socket", str(service.socket)]
    flags += ["--kvbm-host-gb", "0.3", "--kvbm-disk-gb", "0.3", "--kvbm-disk-dir", str(service.disk)]
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
    ask_service(vllm.service.socket, Clear(tiers=[StorageTier.DISK]), DEADLINE_S)
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


async def halted(vllm: Running, kind: str, engine: "VllmEngine", number: int) -> "asyncio.Task[Answer]":
    """A request whose blocks are being copied, and will be so for ever."""
    (vllm.halt / kind).touch()
    asking = asyncio.create_task(ask(engine, number))
    await eventually((vllm.halt / f"{kind}-halted").exists, DEADLINE_S)
    return asking


async def test_engines_are_killed_while_they_copy_and_another_goes_on(vllm: Running, smollm2_dir: Path) -> None:
    """One while it loads a block, one while it saves one: of neither anybody finds half."""
    before = {number: await reference(vllm.engine, number) for number in (40, 41, 42)}
    loading = await halted(vllm, "load", vllm.engine, 40)
    saving = await halted(vllm, "save", vllm.other, 43)
    assert vllm.service.pool().engines == 2
    for pid in engine_processes():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ConnectionLostError):
        await loading
    await asyncio.gather(saving, return_exceptions=True)  # it may have ended before, with what it had computed
    await asyncio.gather(vllm.engine.cleanup(), vllm.other.cleanup())
    await eventually(vllm.service.is_still, DEADLINE_S)
    verified = ask_service(vllm.service.socket, Verify(), DEADLINE_S)
    assert isinstance(verified, Done)
    assert (verified.checked > 0, verified.dropped) == (True, 0)

    another = _engine(smollm2_dir, vllm.service)
    try:
        await another.start()
        assert {number: await ask(another, number) for number in before} == before
        before[43] = await reference(another, 43)  # nothing of it had been kept
        for number, answer in before.items():
            assert await ask(another, number) == answer
    finally:
        await another.cleanup()
    await eventually(vllm.service.is_still, DEADLINE_S)
    assert [tier.checksum_failures for tier in vllm.service.pool().tiers] == [0, 0]
