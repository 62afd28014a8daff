"""Disaggregated serving in the request path: a prefill worker first, then a decode worker with what it has left.

Which of the two ways a request goes follows from who is alive when it comes, and from nothing that was before.
"""

import logging
from typing import Any

import msgspec

from dynamo.config import Live
from dynamo.errors import DeadlineExceededError, DynamoError, InvalidRequestError, RequestCancelledError
from dynamo.protocols.disagg import DisaggReport, PrefillReason
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, TextEngineOutput
from dynamo.router.disagg import DisaggConfig, choose_prefill
from dynamo.router.prefill_leg import PrefillLeg
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
        journey = await self._plan(prefill, request)
        if journey.reason.remote:
            leg = PrefillLeg(prefill, request, context)
            try:
                failure = await self._disaggregated(leg, journey, request, context, deliver)
            finally:
                await leg.close()
            if failure is None:
                return
            journey.reason = failure
        self._count(journey.reason)
        told = _FirstOutput(deliver, request, journey).pass_on if request.explain_routing else deliver
        await self._decode.generate(request, context, told)

    async def _plan(self, prefill: PushRouter, request: PreprocessedRequest) -> "_Journey":
        """Where the prompt is to be prefilled."""
        config, prompt_tokens = self._config.value, len(request.token_ids)
        workers = prefill.workers()
        if not workers:
            return _Journey(PrefillReason.NO_PREFILL_WORKER)
        if not self._decode.takes_handoffs(request.target):
            return _Journey(PrefillReason.NO_DECODE_WORKER)
        if request.output_options.prompt_logprobs is not None:
            return _Journey(PrefillReason.PROMPT_LOGPROBS)
        if not config.conditional_disagg:
            return _Journey(PrefillReason.UNCONDITIONAL)
        there = await self._decode.prospect(request)
        uncached_tokens = prompt_tokens - (there.cached_tokens if there is not None else 0)
        elsewhere = await prefill.prospect(request)
        waiting_tokens = elsewhere.waiting_tokens if elsewhere is not None else self._prefilling_tokens // len(workers)
        reason = choose_prefill(
            config, prompt_tokens=prompt_tokens, uncached_tokens=uncached_tokens, waiting_tokens=waiting_tokens
        )
        return _Journey(reason, uncached_tokens, waiting_tokens)

    async def _disaggregated(
        self,
        leg: PrefillLeg,
        journey: "_Journey",
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
        first = _FirstOutput(deliver, request, journey)
        self.figures.handed_on(leg.prefill_s or 0)
        try:
            await self._decode.generate(msgspec.structs.replace(request, handoff=handoff), context, first.pass_on)
        except DynamoError as error:
            if first.begun or not error.retryable:
                raise
            logger.warning("request %s: prefilled in vain: %s", context.id(), error)
            return PrefillReason.HANDOFF_LOST
        self._count(journey.reason)
        return None

    def _count(self, reason: PrefillReason) -> None:
        self.figures.decided(_place(reason), reason.value)


class _Journey:
    """What is known of the way of one request."""

    __slots__ = ("leg", "reason", "uncached_tokens", "waiting_tokens")

    def __init__(
        self, reason: PrefillReason, uncached_tokens: int | None = None, waiting_tokens: int | None = None
    ) -> None:
        self.reason = reason
        self.uncached_tokens = uncached_tokens
        self.waiting_tokens = waiting_tokens
        self.leg: PrefillLeg | None = None  # the one that has answered

    def report(self, prompt_tokens: int) -> DisaggReport:
        leg = self.leg
        return DisaggReport(
            prefill=_place(self.reason),
            reason=self.reason,
            prompt_tokens=prompt_tokens,
            uncached_tokens=self.uncached_tokens,
            waiting_tokens=self.waiting_tokens,
            worker_id=leg.worker_id if leg is not None else None,
            prefill_ms=leg.prefill_s * 1000 if leg is not None and leg.prefill_s is not None else None,
            routing=leg.routing if leg is not None else None,
        )


def _place(reason: PrefillReason) -> str:
    return "remote" if reason.remote else "local"


class _FirstOutput:
    """Hands outputs on; the first says where the prompt was prefilled, and how much of it needed no prefill there."""

    __slots__ = ("_deliver", "_journey", "_request", "begun")

    def __init__(self, deliver: Deliver[LLMEngineOutput], request: PreprocessedRequest, journey: _Journey) -> None:
        self._deliver = deliver
        self._request = request
        self._journey = journey
        self.begun = False

    def pass_on(self, output: LLMEngineOutput) -> bool:
        if not self.begun:
            self.begun = True
            journey = self._journey
            if journey.reason.remote and journey.leg is not None:
                output.cached_tokens = journey.leg.cached_tokens  # to the decode worker all of it looks cached
            output.disaggregation = journey.report(len(self._request.token_ids))
        return self._deliver(output)
