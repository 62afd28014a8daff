"""Real vLLM engines, one request at a time or many, with and without tiers below the device."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

from benchmarks.kvbm_hooks import DIRECTORY
from dynamo.engines.vllm.args import parse_command_line
from dynamo.errors import InternalError
from dynamo.protocols.generation import PreprocessedRequest, SamplingOptions, StopConditions
from dynamo.runtime.context import Context
from dynamo.tokens import token_array

if TYPE_CHECKING:
    from vllm.config import VllmConfig as EngineConfig

    from dynamo.engines.vllm.engine import VllmEngine

BLOCK_TOKENS = 32
BLOCK_BYTES = 30 * 2 * 3 * 64 * 2 * BLOCK_TOKENS  # of SmolLM2: layers, keys and values, heads, their size, bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request gave, and when."""

    ttft_s: float
    elapsed_s: float
    token_ids: tuple[int, ...]
    cached_tokens: int


class Engine:
    """Greedy answers of a fixed length."""

    def __init__(self, engine: "VllmEngine") -> None:
        self._engine = engine

    async def ask(self, prompt: Sequence[int], max_tokens: int) -> Answer:
        """Raises InternalError when nothing comes."""
        request = PreprocessedRequest(
            model="benchmark",
            token_ids=token_array(prompt),
            sampling_options=SamplingOptions(temperature=0.0),
            stop_conditions=StopConditions(max_tokens=max_tokens, ignore_eos=True),
        )
        began_s, ttft_s, cached, token_ids = time.perf_counter(), 0.0, 0, list[int]()
        async for output in self._engine.generate(request, Context()):
            if output.token_ids and not token_ids:
                ttft_s = time.perf_counter() - began_s
                cached = output.cached_tokens or 0
            token_ids += output.token_ids
        if not token_ids:
            raise InternalError("the engine has given no token")
        elapsed_s = time.perf_counter() - began_s
        return Answer(ttft_s=ttft_s, elapsed_s=elapsed_s, token_ids=tuple(token_ids), cached_tokens=cached)

    async def ask_all(self, prompts: Sequence[Sequence[int]], max_tokens: int, at_once: int) -> list[Answer]:
        """So many at a time, in order."""
        room = asyncio.Semaphore(at_once)

        async def one(prompt: Sequence[int]) -> Answer:
            async with room:
                return await self.ask(prompt, max_tokens)

        return list(await asyncio.gather(*map(one, prompts)))

    async def clear_device(self) -> None:
        """Forgets what the device holds; the tiers below keep what they have."""
        await self._engine.clear_device_cache()


@asynccontextmanager
async def engine(model: str, flags: Sequence[str] = (), hooks: str = "") -> AsyncIterator[Engine]:
    """A vLLM with these flags; `hooks`: a directory for what the connector's hooks cost, see kvbm_timed."""
    with mock.patch.dict(os.environ):  # vLLM writes to it
        _, config = parse_command_line(["--model", model, "--block-size", str(BLOCK_TOKENS), *flags])
        if hooks:
            _time_hooks(config, hooks)
        from dynamo.engines.vllm.engine import VllmEngine

        made = VllmEngine(config)
        try:
            await made.start()
            yield Engine(made)
        finally:
            await made.cleanup()


def _time_hooks(config: "EngineConfig", directory: str) -> None:
    os.environ[DIRECTORY] = directory
    transfer = config.kv_transfer_config
    assert transfer is not None
    transfer.kv_connector, transfer.kv_connector_module_path = "TimedKvbmConnector", "benchmarks.kvbm_timed"
