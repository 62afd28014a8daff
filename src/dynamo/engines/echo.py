"""The smallest engine: it answers with the prompt's own tokens. Read it to write another."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from dynamo.config import option, parse
from dynamo.engines.base import EngineInfo, KvEventSink
from dynamo.engines.config import WorkerConfig
from dynamo.engines.worker import Worker, run_workers
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.load import WorkerLoad
from dynamo.runtime.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoConfig(WorkerConfig):
    """Serve a model that answers with the prompt itself, a token at a time."""

    model_path: str = option(
        "smollm2",
        flag=("--model-path", "--model"),
        help="whose tokenizer and chat template to use: a directory, a hub name or smollm2",
    )
    model_name: str | None = option(None, flag="--model-name", help="name to serve it under (default: echo)")
    delay_ms: float = option(10.0, flag="--delay-ms", env="DYN_TOKEN_ECHO_DELAY_MS", help="pause before each token")


class EchoEngine:
    """Yields the tokens of the prompt until they, or the allowed tokens, run out."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self._delay_s = delay_s
        self._running: dict[asyncio.Event, str] = {}  # set when the request is aborted; ids are the clients' own choice

    def publish_kv_events(self, sink: KvEventSink) -> bool:
        return False  # there is no cache

    async def start(self) -> EngineInfo:
        return EngineInfo()

    async def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        aborted = asyncio.Event()
        self._running[aborted] = context.id()
        limit = request.stop_conditions.max_tokens
        said = request.resumed_tokens
        answer = request.token_ids[: len(request.token_ids) - said][said:][:limit]
        try:
            for position, token_id in enumerate(answer, start=1):
                await asyncio.sleep(self._delay_s)
                if aborted.is_set():
                    yield LLMEngineOutput(finish_reason=FinishReason.CANCELLED)
                    return
                finish = None
                if position == len(answer):
                    finish = FinishReason.LENGTH if position == limit else FinishReason.STOP
                yield LLMEngineOutput(token_ids=[token_id], finish_reason=finish)
        finally:
            self._running.pop(aborted, None)

    async def abort(self, request_id: str) -> None:
        for aborted, running_id in self._running.items():
            if running_id == request_id:
                aborted.set()

    def load(self) -> list[WorkerLoad]:
        return [WorkerLoad(running_requests=len(self._running))]

    async def failed(self) -> str:
        await asyncio.Event().wait()
        return ""

    async def cleanup(self) -> None:
        self._running.clear()


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(EchoConfig, sys.argv[1:] if argv is None else argv, prog="python -m dynamo.echo")
    engine = EchoEngine(config.delay_ms / 1000)
    return run_workers(
        config, [Worker(engine=engine, model_path=config.model_path, model_name=config.model_name or "echo")]
    )
