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
    in_session: bool,
    now_s: float,
) -> str | None:
    """None where something is.

    `overlaps`: of all workers, candidates or not; `in_session`: the chosen one is where the request's session was.
    """
    if chosen.overlap.total:
        return None
    if request.prefilled:
        return "the prompt is prefilled elsewhere, only load counts"
    if not request.hashes:
        return f"the prompt has {request.prompt_tokens} tokens, a block {block_size}"
    if overlaps:
        if in_session:
            return "the session stays with its worker"
        return _why_not_another(candidates, chosen)
    if caches.known_elsewhere(request, now_s):
        return "the prompt is cached for another LoRA adapter or cache salt"
    if caches.empty:
        return "nothing is known to be cached anywhere"
    return "no worker has the first block of the prompt"


def _why_not_another(candidates: Sequence[Candidate], chosen: Candidate) -> str:
    """Some worker, candidate or not, has a part of the prompt."""
    others = [candidate for candidate in candidates if candidate.overlap.total]
    if not others:
        return "no worker that may serve the request has anything of the prompt, but another has"
    cheaper = [other for other in others if other.cost < chosen.cost]
    if not cheaper:
        return "another worker has a part of the prompt, but costs more"
    if all(other.has_too_many for other in cheaper) and not chosen.has_too_many:
        return "the workers that have a part of the prompt have too many requests already"
    return "the temperature chose a worker that has nothing of the prompt"
