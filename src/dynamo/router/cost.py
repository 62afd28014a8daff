"""What it costs to give a prompt to a worker. Pure functions.

    cost = prefill_load_scale * (prefill_blocks - credit - in_flight) + decode_blocks
    credit = overlap_score_weight * device + host_cache_hit_weight * host + disk_cache_hit_weight * disk

The terms are upstream's. `prefill_blocks` is what the worker still has to prefill together with the whole prompt;
`credit` counts the blocks of the prompt that it has, by tier; `decode_blocks` what its running sequences would hold
together with the prompt, which every decode step has to read, blocks that they share once. `in_flight` is ours: blocks
of the prompt that the worker is about to prefill for another request are no reason to go elsewhere, where they would
have to be prefilled as well.

A credit of 1 is what a cached block saves this request. It saves more: the time in which the worker would compute the
block is missing to all that wait there, the more the busier the fleet is. Hence the default of 8, and no lower bound at
0, under which workers that have much and workers that have more would look alike. A block is prefilled once and decoded
from for a short while: prefill_load_scale, 32 by default, is the price of the one in the other. Both were found with
`benchmarks/router.py`; docs/adr/0004 says what others give.
"""

import math
import random
from collections.abc import Sequence

from dynamo.router.config import KvRouterConfig
from dynamo.router.prefix_caches import PromptMatch
from dynamo.router.radix_tree import Overlap
from dynamo.router.sequences import WorkerActivity


def credit_blocks(config: KvRouterConfig, overlap: Overlap) -> float:
    """How many blocks of prefill the overlap is worth."""
    return (
        config.overlap_score_weight * overlap.device
        + config.host_cache_hit_weight * overlap.host
        + config.disk_cache_hit_weight * overlap.disk
    )


def cost_blocks(
    config: KvRouterConfig,
    block_size: int,
    prompt_tokens: int,
    activities: Sequence[WorkerActivity],
    match: PromptMatch,
) -> list[float]:
    """What the prompt costs on each of the workers, in blocks: how busy they are, and what each has of the prompt."""
    per_token = config.prefill_load_scale / block_size
    prompt_blocks = -(-prompt_tokens // block_size)
    overlap_of, active, in_flight = match.overlaps.get, match.active, match.in_flight
    last: Overlap | None = None
    uncached: float = prompt_tokens  # where a worker has `last`, as many others may
    costs: list[float] = []
    for activity in activities:
        worker = activity.worker
        overlap = overlap_of(worker)
        if overlap is not last:
            last = overlap
            uncached = prompt_tokens if overlap is None else prompt_tokens - block_size * credit_blocks(config, overlap)
        prefill = uncached + activity.prefill_tokens
        decode_blocks = activity.blocks + prompt_blocks
        if worker in active:
            decode_blocks -= active[worker]
            if worker in in_flight:
                own_tokens = activity.prefill_tokens - activity.foreign_prefill_tokens
                prefill -= min(block_size * in_flight[worker], own_tokens)
        costs.append(per_token * prefill + decode_blocks)
    return costs


def decode_cost_blocks(
    config: KvRouterConfig,
    block_size: int,
    prompt_tokens: int,
    activities: Sequence[WorkerActivity],
    match: PromptMatch,
) -> list[float]:
    """The same for a prompt that is prefilled already: how busy the workers are.

    A worker that has a part of it cached need not fetch that part, which costs next to nothing: it counts for nothing.
    """
    per_token = config.prefill_load_scale / block_size
    prompt_blocks = -(-prompt_tokens // block_size)
    shared = match.active.get
    return [
        per_token * activity.prefill_tokens + activity.blocks + prompt_blocks - shared(activity.worker, 0)
        for activity in activities
    ]


def select(costs: Sequence[float], temperature: float, rng: random.Random) -> int:
    """The position of the chosen one (costs is not empty).

    Temperature 0 takes the cheapest, any of them if there are several: always the first would send a burst that finds
    all idle to one worker. Above 0 it draws from the softmax of the costs, scaled to the range from 0 to 1.
    """
    lowest = min(costs)
    if temperature == 0:
        if costs.count(lowest) == 1:
            return costs.index(lowest)
        return rng.choice([i for i, cost in enumerate(costs) if cost == lowest])
    spread = max(costs) - lowest
    if spread == 0:
        return rng.randrange(len(costs))
    weights = [math.exp((lowest - cost) / spread / temperature) for cost in costs]
    return rng.choices(range(len(costs)), weights)[0]
