"""What a prompt costs, and who is chosen."""

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.protocols.generation import WorkerId
from dynamo.router.config import KvRouterConfig
from dynamo.router.cost import cost_blocks, decode_cost_blocks, select
from dynamo.router.prefix_caches import PromptMatch
from dynamo.router.radix_tree import Overlap
from dynamo.router.sequences import WorkerActivity

BLOCK_SIZE = 16
PROMPT_TOKENS = 160
A, B, C, D = (WorkerId(number) for number in range(4))
UNIT = KvRouterConfig(  # costs can be read: a block to prefill is a block
    overlap_score_weight=1.0, host_cache_hit_weight=0.75, disk_cache_hit_weight=0.25, prefill_load_scale=1.0
)


def cost(
    overlap: Overlap | None = None,
    *,
    prefill_tokens: int = 0,
    foreign_prefill_tokens: int = 0,
    blocks: int = 0,
    active: int = 0,
    in_flight: int = 0,
    config: KvRouterConfig = UNIT,
) -> float:
    """Without the prompt's own ten blocks, which every worker would have to hold."""
    activity = WorkerActivity(
        worker=A, prefill_tokens=prefill_tokens, foreign_prefill_tokens=foreign_prefill_tokens, blocks=blocks
    )
    match = PromptMatch(
        {A: overlap} if overlap else {}, {A: active} if active else {}, {A: in_flight} if in_flight else {}
    )
    (found,) = cost_blocks(config, BLOCK_SIZE, PROMPT_TOKENS, [activity], match)
    return found - 10


class TestDecodeCost:
    """Of a prompt that is prefilled already."""

    def test_is_load_alone(self) -> None:
        activities = [
            WorkerActivity(worker=A),
            WorkerActivity(worker=B, blocks=7),
            WorkerActivity(worker=C, prefill_tokens=56),
            WorkerActivity(worker=D, blocks=7),
        ]
        match = PromptMatch({A: Overlap(device=10)}, {D: 4}, {})
        found = decode_cost_blocks(UNIT, BLOCK_SIZE, PROMPT_TOKENS, activities, match)
        assert found == [10, 17, 13.5, 13]  # the last has four of the ten blocks in use


class TestCost:
    def test_the_prompt_and_the_load(self) -> None:
        assert cost() == 10
        assert cost(prefill_tokens=56) == 13.5
        assert cost(blocks=7) == 17
        assert cost(prefill_tokens=56, foreign_prefill_tokens=40, blocks=7) == 20.5  # whoever has sent it

    def test_cached_blocks_are_credited_by_tier(self) -> None:
        assert cost(Overlap(device=4)) == 6
        assert cost(Overlap(host=4)) == 7
        assert cost(Overlap(disk=4)) == 9
        assert cost(Overlap(2, 4, 4), prefill_tokens=80, blocks=3) == 12

    def test_weights_are_settings(self) -> None:
        config = KvRouterConfig(
            overlap_score_weight=0.5, host_cache_hit_weight=0.25, disk_cache_hit_weight=0.125, prefill_load_scale=3.0
        )
        assert cost(Overlap(2, 4, 4), prefill_tokens=32, blocks=1, config=config) == 3 * 9.5 + 1

    def test_there_is_no_lower_bound(self) -> None:
        """A worker that has more is cheaper even where both have more than enough."""
        config = dataclasses.replace(UNIT, overlap_score_weight=2.0)
        assert cost(Overlap(device=10), config=config) == -10
        assert cost(Overlap(device=8), config=config) == -6
        assert cost(Overlap(device=10), blocks=3, config=config) == -7
        assert cost(Overlap(device=10), prefill_tokens=240, blocks=3, config=config) == 8

    def test_by_default_a_cached_block_is_worth_eight_to_prefill_and_one_of_those_32_to_decode(self) -> None:
        config = KvRouterConfig()
        uncached = cost(config=config)
        assert uncached == 32 * 10
        assert uncached - cost(Overlap(device=1), config=config) == 32 * 8
        assert uncached - cost(Overlap(host=1), config=config) == 32 * 6
        assert uncached - cost(Overlap(disk=1), config=config) == 32 * 2
        assert cost(blocks=1, config=config) - uncached == 1

    def test_weights_of_0_make_it_blind(self) -> None:
        config = dataclasses.replace(UNIT, overlap_score_weight=0.0)
        assert cost(Overlap(device=10), config=config) == cost(config=config)
        config = dataclasses.replace(UNIT, prefill_load_scale=0.0)
        assert cost(prefill_tokens=999, blocks=3, config=config) == 3

    def test_each_worker_has_its_own(self) -> None:
        busy = [WorkerActivity(worker=worker, prefill_tokens=32, blocks=1) for worker in (A, B)]
        idle = [WorkerActivity(worker=worker) for worker in (C, D)]
        match = PromptMatch(
            {B: Overlap(device=3), C: Overlap(device=3), D: Overlap(host=4)}, active={B: 3, C: 2}, in_flight={B: 1}
        )
        costs = cost_blocks(UNIT, BLOCK_SIZE, PROMPT_TOKENS, busy + idle, match)
        assert costs == [23, 20 - 3 - 1, 17 - 2, 17]

    def test_blocks_in_use_there_need_not_be_held_again(self) -> None:
        assert cost(Overlap(device=4), blocks=9, active=4) == 6 + 9 - 4

    def test_what_is_about_to_be_prefilled_there_is_no_load(self) -> None:
        assert cost(Overlap(device=4), prefill_tokens=80, blocks=5, active=4, in_flight=4) == (6 + 5 - 4) + 5 - 4
        assert cost(Overlap(device=4), prefill_tokens=80, blocks=5, active=4, in_flight=1) == (6 + 5 - 1) + 5 - 4

    def test_nor_is_it_more_than_that(self) -> None:
        """Its prefill may have ended, and no event has told yet."""
        assert cost(Overlap(device=4), active=4, in_flight=4) == 6 - 4
        assert cost(Overlap(device=4), prefill_tokens=16, active=4, in_flight=4) == 6 - 4
        foreign = cost(Overlap(device=4), prefill_tokens=96, foreign_prefill_tokens=80, active=4, in_flight=4)
        assert foreign == 6 + 5 - 4


def chosen(costs: Sequence[float], temperature: float, times: int, seed: int = 0) -> Counter[int]:
    rng = random.Random(seed)
    return Counter(select(costs, temperature, rng) for _ in range(times))


class TestSelect:
    def test_the_cheapest(self) -> None:
        assert chosen([3.0, 1.5, 2.0], 0.0, 50) == {1: 50}

    def test_any_of_the_cheapest(self) -> None:
        counts = chosen([1.0, 2.0, 1.0, 1.0], 0.0, 900)
        assert counts.keys() == {0, 2, 3}
        assert min(counts.values()) > 200

    def test_any_of_equals_at_any_temperature(self) -> None:
        assert min(chosen([5.0, 5.0, 5.0], 0.7, 900).values()) > 200

    def test_temperature_spreads_and_prefers_the_cheap(self) -> None:
        counts = chosen([0.0, 5.0, 10.0], 0.5, 9000)
        assert counts[0] > counts[1] > counts[2] > 0
        assert counts[0] / counts[1] == pytest.approx(2.718, rel=0.15)  # half the range at half the temperature: 1/e

    def test_a_higher_temperature_spreads_more(self) -> None:
        costs = [0.0, 5.0, 10.0]
        shares = [chosen(costs, temperature, 3000)[0] for temperature in (0.01, 0.2, 1.0, 1e9)]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] == 3000
        assert shares[-1] == pytest.approx(1000, rel=0.15)

    def test_it_does_not_matter_how_large_costs_are(self) -> None:
        assert chosen([0.0, 5.0, 10.0], 0.5, 500) == chosen([0.0, 5e6, 1e7], 0.5, 500)

    @given(
        costs=st.lists(st.floats(0, 1e12), min_size=1, max_size=9),
        temperature=st.sampled_from([0.0, 5e-324, 1e-9, 0.3, 1e300]),
        seed=st.integers(0, 99),
    )
    def test_is_one_of_them_and_the_same_for_the_same_seed(
        self, costs: list[float], temperature: float, seed: int
    ) -> None:
        position = select(costs, temperature, random.Random(seed))
        assert position == select(costs, temperature, random.Random(seed))
        assert 0 <= position < len(costs)
        if temperature < 1e-300:
            assert costs[position] == min(costs)
