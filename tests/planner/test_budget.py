"""The GPU budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import ConfigError
from dynamo.planner.budget import Wish, check_budget, share
from dynamo.planner.config import PlannerOptions
from dynamo.protocols.model_card import WorkerType

PREFILL, DECODE = WorkerType.Prefill, WorkerType.Decode
ROLES = frozenset({PREFILL, DECODE})


def _wishes(prefill: int, decode: int, *, gpus: tuple[int, int] = (1, 1), least: int = 0) -> dict[WorkerType, Wish]:
    return {
        PREFILL: Wish(workers=prefill, gpus=gpus[0], least=least),
        DECODE: Wish(workers=decode, gpus=gpus[1], least=least),
    }


def test_who_fits_gets_all() -> None:
    assert share(8, _wishes(3, 5)) == {PREFILL: 3, DECODE: 5}


def test_both_are_cut_in_proportion() -> None:
    assert share(8, _wishes(4, 12)) == {PREFILL: 2, DECODE: 6}
    assert share(9, _wishes(4, 4, gpus=(1, 2))) == {PREFILL: 3, DECODE: 3}


def test_each_keeps_its_least() -> None:
    assert share(4, _wishes(1, 30, least=1)) == {PREFILL: 1, DECODE: 3}


def test_a_budget_below_the_least_still_holds() -> None:
    assert share(1, _wishes(2, 2, least=2)) == {PREFILL: 0, DECODE: 1}


def test_too_small_a_budget_is_said() -> None:
    options = PlannerOptions(min_prefill_workers=2, prefill_gpus=2, min_decode_workers=1, decode_gpus=4, gpu_budget=7)
    with pytest.raises(ConfigError, match="the fewest prefill and decode workers have 8 GPUs, --gpu-budget is 7"):
        check_budget(options, ROLES)
    check_budget(options, frozenset({DECODE}))


wishes = st.builds(Wish, workers=st.integers(0, 50), gpus=st.integers(1, 8), least=st.integers(0, 5))


@given(st.integers(0, 200), wishes, wishes)
def test_never_over_budget_nor_over_a_wish(budget: int, prefill: Wish, decode: Wish) -> None:
    given_out = share(budget, {PREFILL: prefill, DECODE: decode})
    assert 0 <= given_out[PREFILL] <= prefill.workers
    assert 0 <= given_out[DECODE] <= decode.workers
    assert given_out[PREFILL] * prefill.gpus + given_out[DECODE] * decode.gpus <= budget
    least = {PREFILL: min(prefill.least, prefill.workers), DECODE: min(decode.least, decode.workers)}
    if least[PREFILL] * prefill.gpus + least[DECODE] * decode.gpus <= budget:
        assert all(given_out[role] >= least[role] for role in least)
