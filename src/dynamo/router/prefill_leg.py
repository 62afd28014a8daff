"""The first leg of a disaggregated request: a prefill worker computes the KV cache of its prompt, and keeps it."""

import asyncio
import logging
import time
from typing import Any

import msgspec

from dynamo.protocols.disagg import Handoff
from dynamo.protocols.generation import (
    LLMEngineOutput,
    OutputOptions,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
)
from dynamo.protocols.routing import RoutingReport
from dynamo.router.push_router import PushRouter
from dynamo.runtime.context import Context

logger = logging.getLogger(__name__)


class PrefillLeg:
    """Begins at once. close() ends it, whatever has become of it."""

    def __init__(self, prefill: PushRouter, request: PreprocessedRequest, context: Context) -> None:
        self._request_id = context.id()
        self._began_s = time.monotonic()
        self._handoff: asyncio.Future[Handoff] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(
            prefill.generate(prefill_request(request), context, self._take), name=f"prefill-{self._request_id}"
        )
        self.prefill_s: float | None = None  # until the handoff was there
        self.cached_tokens: int | None = None  # of the prompt, that needed no prefill
        self.worker_id: int | None = None
        self.routing: RoutingReport | None = None

    async def handoff(self) -> Handoff | None:
        """None where the worker has ended without one, as it does when the request is stopped. Raises DynamoError.

        With an engine that allows it the handoff is there before the prefill is done; the leg goes on then.
        """
        either: list[asyncio.Future[Any]] = [self._task, self._handoff]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._handoff.done():
            return self._handoff.result()
        self._task.result()
        return None

    async def close(self) -> None:
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            logger.debug("request %s: its prefill ended with %r", self._request_id, error)

    def _take(self, output: LLMEngineOutput) -> bool:
        """The tokens of this leg are nobody's: the decode worker makes them all."""
        if output.worker_id is not None:
            self.worker_id, self.routing = output.worker_id.instance_id, output.routing
        if output.cached_tokens is not None:
            self.cached_tokens = output.cached_tokens
        if output.handoff is not None and not self._handoff.done():
            self.prefill_s = time.monotonic() - self._began_s
            self._handoff.set_result(output.handoff)
        return True


def prefill_request(request: PreprocessedRequest) -> PreprocessedRequest:
    """What the prefill worker is asked for: one token, because engines make no fewer."""
    return msgspec.structs.replace(
        request,
        sampling_options=SamplingOptions(),
        stop_conditions=StopConditions(max_tokens=1, ignore_eos=True),
        output_options=OutputOptions(),
        guided_decoding=None,
        dp_rank=None,
        target=None,
        prefill_only=True,
    )
