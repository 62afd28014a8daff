"""What is known of the way of one request through prefill and decode workers, and how it is told."""

from dynamo.protocols.disagg import DisaggReport, PrefillReason
from dynamo.protocols.generation import LLMEngineOutput
from dynamo.router.prefill_leg import PrefillLeg
from dynamo.runtime.stage import Deliver
from dynamo.telemetry.disagg_metrics import DisaggFigures


class Journey:
    """Where the prompt is prefilled, and why. Both may change until the first output."""

    __slots__ = ("_prompt_tokens", "leg", "lost", "reason", "uncached_tokens", "waiting_tokens")

    def __init__(
        self,
        prompt_tokens: int,
        reason: PrefillReason,
        *,
        uncached_tokens: int | None = None,
        waiting_tokens: int | None = None,
    ) -> None:
        """The last two as in DisaggReport."""
        self._prompt_tokens = prompt_tokens
        self.reason = reason
        self.uncached_tokens = uncached_tokens
        self.waiting_tokens = waiting_tokens
        self.leg: PrefillLeg | None = None  # the one that has answered
        self.lost = False  # the decode worker that had begun with it

    @property
    def place(self) -> str:
        return "remote" if self.reason.remote else "local"

    def report(self) -> DisaggReport:
        leg = self.leg
        return DisaggReport(
            prefill=self.place,
            reason=self.reason,
            prompt_tokens=self._prompt_tokens,
            uncached_tokens=self.uncached_tokens,
            waiting_tokens=self.waiting_tokens,
            worker_id=leg.worker_id if leg is not None else None,
            prefill_ms=leg.prefill_s * 1000 if leg is not None and leg.prefill_s is not None else None,
            routing=leg.routing if leg is not None else None,
        )


class FirstOutput:
    """Hands outputs on. The first says how the request came to it, and is what counts."""

    __slots__ = ("_deliver", "_figures", "_journey", "begun")

    def __init__(self, deliver: Deliver[LLMEngineOutput], journey: Journey, figures: DisaggFigures) -> None:
        self._deliver = deliver
        self._journey = journey
        self._figures = figures
        self.begun = False

    def pass_on(self, output: LLMEngineOutput) -> bool:
        if not self.begun:
            self.begun = True
            journey = self._journey
            self._figures.decided(journey.place, journey.reason.value)
            if journey.reason.remote and journey.leg is not None:
                output.cached_tokens = journey.leg.cached_tokens  # to the decode worker all of it looks cached
            output.disaggregation = journey.report()
        return self._deliver(output)
