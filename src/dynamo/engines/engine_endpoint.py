"""What an engine's endpoints answer."""

import asyncio
from collections.abc import AsyncIterator

from dynamo.engines.base import LLMEngine
from dynamo.engines.pending_prompts import PendingPrompts
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.load import WorkerLoad
from dynamo.runtime.context import Context
from dynamo.runtime.handler import closing
from dynamo.runtime.watchdog import Vitals


class EngineEndpoint:
    """An engine's handlers."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        self._pending = PendingPrompts()
        self._aborts: set[asyncio.Task[None]] = set()
        self._outputs = 0

    async def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        unfollow = context.on_stop(self._abort)
        self._pending.add(request)
        pending = True
        try:
            async with closing(self._engine.generate(request, context)) as outputs:
                async for output in outputs:
                    if pending:
                        self._pending.remove(request)
                        pending = False
                    self._outputs += 1
                    yield output
        finally:
            if pending:
                self._pending.remove(request)
            unfollow()

    def load(self) -> list[WorkerLoad]:
        """The load at this moment."""
        return self._pending.fill_in(self._engine.load())

    def vitals(self) -> Vitals:
        """What can be seen of any engine. Who waits for more than its first output may do so for a slow reader."""
        return Vitals(steps=self._outputs, busy=bool(self._pending))

    def _abort(self, context: Context) -> None:
        """Turns the caller's stop into the engine's abort, so that the stream ends with a finish reason."""
        if not context.is_killed():  # then the stream is being closed, which frees the request too
            task = asyncio.create_task(self._engine.abort(context.id()))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)
