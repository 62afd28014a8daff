"""A request on the worker that the KV router has given it."""

from typing import Any, Protocol

from dynamo.protocols.generation import LLMEngineOutput
from dynamo.protocols.routing import RoutingReport
from dynamo.router.routing import RoutingDecision
from dynamo.runtime.stage import Deliver
from dynamo.telemetry.router_metrics import RouterFigures


class Ledger(Protocol):
    """Where the load of each request is kept: a KvPlacer."""

    figures: RouterFigures

    def first_token(self, request_id: str) -> None: ...

    def output(self, request_id: str, tokens: int) -> None: ...

    def free(self, request_id: str) -> None: ...


class KvPlacement:
    """A request on its worker, as the scheduler counts it."""

    __slots__ = (
        "_begun",
        "_block_size",
        "_deliver",
        "_gathered",
        "_ledger",
        "_prompt_tokens",
        "_report",
        "_request_id",
        "dp_rank",
        "worker",
    )

    def __init__(
        self,
        ledger: Ledger,
        decision: RoutingDecision,
        report: RoutingReport | None,
        *,
        prompt_tokens: int | None,
        block_size: int,
    ) -> None:
        """The first output carries `report`. `prompt_tokens`: None for a prompt that was prefilled elsewhere.

        `block_size` in tokens: by so many the ledger is told of the answer.
        """
        self.worker = decision.worker
        self.dp_rank: int | None = decision.worker.dp_rank
        self._ledger = ledger
        self._request_id = decision.request_id
        self._report = report
        self._prompt_tokens = prompt_tokens
        self._begun = False
        self._block_size = block_size
        self._gathered = 0  # tokens that the ledger has not been told of: each time costs more than passing one on
        self._deliver: Deliver[LLMEngineOutput]

    def watched(self, deliver: Deliver[Any]) -> Deliver[Any]:
        self._deliver = deliver
        return self._pass_on

    def end(self) -> None:
        self._ledger.free(self._request_id)

    def _pass_on(self, output: LLMEngineOutput) -> bool:
        if not self._begun:
            output.routing, self._report = self._report, None
            if not output.token_ids and output.finish_reason is None:
                return self._deliver(output)  # a handoff that leaves before the prompt is prefilled
            self._begun = True
            self._ledger.first_token(self._request_id)
            if self._prompt_tokens is not None:
                self._ledger.figures.prefilled(self._prompt_tokens, output.cached_tokens)
            self._ledger.output(self._request_id, len(output.token_ids))
            return self._deliver(output)
        self._gathered += len(output.token_ids)
        if self._gathered >= self._block_size:
            self._ledger.output(self._request_id, self._gathered)
            self._gathered = 0
        return self._deliver(output)
