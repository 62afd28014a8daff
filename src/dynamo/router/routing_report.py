"""How a decision is told to those who ask."""

from dynamo.protocols.routing import CandidateReport, RoutingReport
from dynamo.router.routing import RoutingDecision
from dynamo.router.selection import RouterMode


def routing_report(decision: RoutingDecision, block_size: int) -> RoutingReport:
    """The decision in numbers and names; `block_size` in tokens."""
    return RoutingReport(
        mode=RouterMode.KV.value,
        worker_id=decision.worker.instance_id,
        dp_rank=decision.worker.dp_rank,
        prompt_blocks=decision.prompt_blocks,
        block_size=block_size,
        overlap_blocks=decision.overlap.total,
        queued_ms=decision.queued_s * 1000,
        no_overlap_reason=decision.no_overlap_reason,
        candidates=[
            CandidateReport(
                worker_id=candidate.worker.instance_id,
                dp_rank=candidate.worker.dp_rank,
                cost=candidate.cost,
                device_blocks=candidate.overlap.device,
                host_blocks=candidate.overlap.host,
                disk_blocks=candidate.overlap.disk,
                prefill_tokens=candidate.prefill_tokens,
                decode_blocks=candidate.decode_blocks,
            )
            for candidate in decision.candidates
        ],
    )
