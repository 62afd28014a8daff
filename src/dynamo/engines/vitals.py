"""How to see whether an engine makes progress."""

from collections.abc import Callable, Sequence

from dynamo.engines.base import LLMEngine
from dynamo.protocols.generation import PreprocessedRequest, StopConditions
from dynamo.protocols.load import WorkerLoad
from dynamo.runtime.context import Context
from dynamo.runtime.handler import closing
from dynamo.runtime.watchdog import Vitals
from dynamo.tokens import token_array

_CANARY_TOKEN = 1  # every vocabulary has it


class EngineVitals:
    """The watchdog's Subject: its parts are the engine's data-parallel ranks."""

    def __init__(self, engine: LLMEngine, model: str, outputs: Callable[[], Vitals]) -> None:
        """`outputs` stands in for the steps of an engine that does not count them."""
        self._engine = engine
        self._model = model
        self._outputs = outputs

    def vitals(self) -> Sequence[Vitals]:
        return [self._vitals(load) for load in self._engine.load()]

    async def canary(self, part: int) -> None:
        """One token, which fills no KV block and counts in no metric of the endpoint."""
        loads = self._engine.load()
        request = PreprocessedRequest(
            model=self._model,
            token_ids=token_array([_CANARY_TOKEN]),
            stop_conditions=StopConditions(max_tokens=1, ignore_eos=True),
            dp_rank=loads[part].dp_rank if len(loads) > 1 else None,
        )
        async with closing(self._engine.generate(request, Context())) as outputs:
            async for _ in outputs:
                return

    def _vitals(self, load: WorkerLoad) -> Vitals:
        if load.steps is None:
            return self._outputs()
        return Vitals(steps=load.steps, busy=load.running_requests + load.waiting_requests > 0)
