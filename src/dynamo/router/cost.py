"""What it costs to give a prompt to a worker. Pure functions.

    cost = prefill_load_scale * max(prefill_blocks - credit, 0) + decode_blocks
    credit = 1.0 * device + 0.75 * host + 0.25 * disk

The formula is upstream's, the weights are settings. `credit` counts the blocks of the prompt that the worker has, by
tier; `prefill_blocks` what it still has to prefill together with the whole prompt; `decode_blocks` what its running
sequences hold, which every decode step has to read.
"""

import math
import random
from collections.abc import Sequence

from dynamo.router.config import KvRouterConfig
from dynamo.router.radix_tree import Overlap


def credit_blocks(config: KvRouterConfig, overlap: Overlap) -> float:
    """How many blocks of prefill the overlap is worth."""
    device, host, disk = overlap
    credit = config.overlap_score_weight * device
    if host or disk:
        credit += config.host_cache_hit_weight * host + config.disk_cache_hit_weight * disk
    return credit


def cost_blocks(
    config: KvRouterConfig,
    *,
    block_size: int,
    prompt_tokens: int,
    prefill_tokens: int,
    decode_blocks: int,
    credit: float,
) -> float:
    """The cost in blocks; `credit` as credit_blocks() gives it."""
    prefill_blocks = (prefill_tokens + prompt_tokens) / block_size
    return config.prefill_load_scale * max(prefill_blocks - credit, 0.0) + decode_blocks


def select(costs: Sequence[float], temperature: float, rng: random.Random) -> int:
    """The position of the chosen one (costs is not empty).

    Temperature 0 takes the cheapest, any of them if there are several: always the first would send a burst that finds
    all idle to one worker. Above 0 it draws from the softmax of the costs, scaled to the range from 0 to 1.
    """
    lowest = min(costs)
    if temperature == 0:
        cheapest = [i for i, cost in enumerate(costs) if cost == lowest]
        return cheapest[0] if len(cheapest) == 1 else rng.choice(cheapest)
    spread = max(costs) - lowest
    if spread == 0:
        return rng.randrange(len(costs))
    weights = [math.exp((lowest - cost) / spread / temperature) for cost in costs]
    return rng.choices(range(len(costs)), weights)[0]
