"""Why a request went where nothing of its prompt is cached. Pure."""

from collections.abc import Sequence

from dynamo.router.prefix_caches import Overlaps, PrefixCaches
from dynamo.router.routing import Candidate, RoutingRequest


def no_overlap_reason(
    request: RoutingRequest,
    block_size: int,
    candidates: Sequence[Candidate],
    chosen: Candidate,
    overlaps: Overlaps,
    caches: PrefixCaches,
    *,
    bound: bool,
) -> str | None:
    """None where something is. `bound`: the session left no choice; `overlaps`: of all workers, candidates or not."""
    if chosen.overlap.total:
        return None
    if not request.hashes:
        return f"the prompt has {request.prompt_tokens} tokens, a block {block_size}"
    if others := [candidate for candidate in candidates if candidate.overlap.total]:
        if all(other.cost >= chosen.cost for other in others):
            return "another worker has a part of the prompt, but costs more"
        return "the temperature chose a worker that has nothing of the prompt"
    if overlaps:
        if bound:
            return "the session stays with its worker"
        return "no worker that may serve the request has anything of the prompt, but another has"
    if caches.known_elsewhere(request):
        return "the prompt is cached for another LoRA adapter or cache salt"
    if caches.empty:
        return "nothing is known to be cached: no worker has sent an event, and no prompt has been sent"
    return "no worker has the first block of the prompt"
