"""Disaggregated serving in the request path: a prefill worker first, then a decode worker with what it has left.

Which of the two ways a request goes follows from who is alive when it comes, and from nothing that was before.
"""

import logging
from typing import Any

import msgspec

from dynamo.config import Live
from dynamo.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    DynamoError,
    HandoffLostError,
    InvalidRequestError,
    NobodyLeftError,
    RequestCancelledError,
    UnavailableError,
)
from dynamo.protocols.disagg import PrefillReason
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, TextEngineOutput
from dynamo.router.disagg import DisaggConfig, choose_prefill, is_short
from dynamo.router.journey import FirstOutput, Journey
from dynamo.router.prefill_leg import PrefillLeg, prefill_request
from dynamo.router.push_router import PushRouter
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver
from dynamo.telemetry.disagg_metrics import DisaggFigures

logger = logging.getLogger(__name__)


class PrefillRouter:
    """The router of a model whose workers may be of two kinds. Where disaggregation fails, it is served without."""

    def __init__(self, decode: PushRouter, config: Live[DisaggConfig]) -> None:
        """`decode` reaches the workers that decode; all of them can prefill as well."""
        self._decode = decode
        self._config = config
        self._prefill: PushRouter | None = None
        self._prefilling_tokens = 0  # in the prompts of legs that have no handoff yet
        self.figures = DisaggFigures()

    def use(self, prefill: PushRouter) -> None:
        """From now on prompts may go there; whether they do depends on the workers that there are."""
        self._prefill = prefill

    async def generate_text(
        self, request: dict[str, Any], context: Context, deliver: Deliver[TextEngineOutput]
    ) -> None:
        """A Stage, for workers that take text: they do all of a request."""
        await self._decode.generate_text(request, context, deliver)

    async def generate(self, request: PreprocessedRequest, context: Context, deliver: Deliver[LLMEngineOutput]) -> None:
        """A Stage: tokens for tokens."""
        prefill = self._prefill
        if prefill is None:
            await self._decode.generate(request, context, deliver)
            return
        self._decode.check(request)  # before anything is prefilled for it
        journey = await self._plan(prefill, request, context)
        if journey.reason.remote:
            leg = PrefillLeg(prefill, request, context)
            try:
                failure = await self._disaggregated(leg, journey, request, context, deliver)
            finally:
                await leg.close()
            if failure is None:
                return
            journey.reason = failure
        first = FirstOutput(deliver, journey, self.figures)
        try:
            await self._decode.generate(request, context, first.pass_on)
        except UnavailableError as error:
            if first.begun or not journey.lost:
                raise
            raise NobodyLeftError("the worker that had this request is lost, and no other can take it now") from error

    async def _plan(self, prefill: PushRouter, request: PreprocessedRequest, context: Context) -> Journey:
        """Where the prompt is to be prefilled."""
        config, prompt_tokens = self._config.value, len(request.token_ids)
        if not prefill.workers():
            return Journey(prompt_tokens, PrefillReason.NO_PREFILL_WORKER)
        if not self._decode.takes_handoffs(request.target):
            return Journey(prompt_tokens, PrefillReason.NO_DECODE_WORKER)
        if request.output_options.prompt_logprobs is not None:
            return Journey(prompt_tokens, PrefillReason.PROMPT_LOGPROBS)
        journey = Journey(prompt_tokens, PrefillReason.UNCONDITIONAL)
        if config.conditional_disagg:
            await self._weigh(config, journey, prefill, request, context)
        return journey

    async def _weigh(
        self,
        config: DisaggConfig,
        journey: Journey,
        prefill: PushRouter,
        request: PreprocessedRequest,
        context: Context,
    ) -> None:
        """Looks at as much as it takes to choose."""
        prompt_tokens = len(request.token_ids)
        short = False
        if config.minds_cache:
            there = await self._decode.prospect(request, context)
            uncached_tokens = prompt_tokens - (there.cached_tokens if there is not None else 0)
            short = is_short(config, prompt_tokens=prompt_tokens, uncached_tokens=uncached_tokens)
            journey.uncached_tokens = uncached_tokens
        if config.minds_load and not short:
            journey.waiting_tokens = await self._waiting_tokens(prefill, request, context)
        journey.reason = choose_prefill(
            config,
            prompt_tokens=prompt_tokens,
            uncached_tokens=journey.uncached_tokens,
            waiting_tokens=journey.waiting_tokens,
        )

    async def _waiting_tokens(self, prefill: PushRouter, request: PreprocessedRequest, context: Context) -> int:
        """What the request's prefill worker has to prefill before it; where nobody knows, an even share of our own."""
        found = await prefill.prospect(prefill_request(request), context)
        if found is not None:
            return found.waiting_tokens
        return self._prefilling_tokens // max(len(prefill.workers()), 1)

    async def _disaggregated(
        self,
        leg: PrefillLeg,
        journey: Journey,
        request: PreprocessedRequest,
        context: Context,
        deliver: Deliver[LLMEngineOutput],
    ) -> PrefillReason | None:
        """Both legs; returns why the request is to be served without them, or None when it is answered."""
        prompt_tokens = len(request.token_ids)
        self._prefilling_tokens += prompt_tokens
        try:
            handoff = await leg.handoff()
        except (InvalidRequestError, RequestCancelledError, DeadlineExceededError):
            raise
        except DynamoError as error:
            logger.warning("request %s: the prefill failed, its decode worker does it: %s", context.id(), error)
            return PrefillReason.PREFILL_FAILED
        finally:
            self._prefilling_tokens -= prompt_tokens
        journey.leg = leg
        if handoff is None:
            if not context.is_stopped():
                logger.warning("request %s: instance %x hands nothing on", context.id(), leg.worker_id or 0)
                return PrefillReason.PREFILL_FAILED
            deliver(LLMEngineOutput(finish_reason=FinishReason.CANCELLED))
            return None
        self.figures.handed_on(leg.prefill_s or 0)
        first = FirstOutput(deliver, journey, self.figures)
        try:
            await self._decode.generate(msgspec.structs.replace(request, handoff=handoff), context, first.pass_on)
        except DynamoError as error:
            named_one_is_gone = request.target is not None and not isinstance(error, HandoffLostError)
            if first.begun or not error.retryable or named_one_is_gone:
                raise
            journey.lost = isinstance(error, ConnectionLostError)
            logger.warning("request %s: prefilled in vain: %s", context.id(), error)
            return PrefillReason.HANDOFF_LOST
        return None
