"""One role at one tick, as the load policy sees it. Pure."""

from dataclasses import dataclass

from dynamo.planner.demand import Demand
from dynamo.planner.load_signals import FleetLoad
from dynamo.planner.observation import Traffic
from dynamo.protocols.model_card import WorkerType


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What there is, what comes, and what is asked of it."""

    role: WorkerType
    counted: int  # workers that are to be there, but for those that fail to start: what is decided on
    ready: int
    coming: int  # that start
    demand: Demand
    traffic: Traffic
    load: FleetLoad | None  # None: no worker told

    @property
    def prefills(self) -> bool:
        return self.role is not WorkerType.Decode

    @property
    def decodes(self) -> bool:
        return self.role is not WorkerType.Prefill

    @property
    def relief(self) -> float:
        """What a latency will be multiplied by when those that start are there: the load is spread over more."""
        return self.ready / max(self.ready + self.coming, 1)

    @property
    def prompt_tokens(self) -> float:
        """Of a prompt, those that are not cached; 0: unknown."""
        return self.demand.prefill_tokens or 0.0

    @property
    def queued_tokens(self) -> float | None:
        """Of prompts without an output yet, those that are not cached, as far as one can tell."""
        load, demand = self.load, self.demand
        if load is None or demand.prefill_tokens is None or not demand.prompt_tokens:
            return None
        if load.prefill_tokens is None:
            return load.waiting * demand.prefill_tokens
        return load.prefill_tokens * demand.prefill_tokens / demand.prompt_tokens
