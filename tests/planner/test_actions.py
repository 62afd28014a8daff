"""From targets to actions."""

from dynamo.planner.actions import plan_actions
from dynamo.planner.bounds import Bounds
from dynamo.planner.decision import Action, Convert, Scale
from dynamo.planner.observation import Fleet
from dynamo.planner.plan import RolePlan
from dynamo.planner.reconcile import Ledger
from dynamo.protocols.model_card import WorkerType

PREFILL, DECODE = WorkerType.Prefill, WorkerType.Decode


def _plan(
    role: WorkerType, desired: int, target: int, *, load: int | None = None, draining: int = 0, gpus: int = 1
) -> RolePlan:
    fleet = Fleet(desired=desired, ready=desired, draining=draining)
    return RolePlan(
        role=role,
        fleet=fleet,
        bounds=Bounds(least=1, most=20, gpus=gpus),
        standing=Ledger(role, 60).compare(fleet, 0),
        load=target if load is None else load,
        floor=target,
        target=target,
    )


def _actions(*plans: RolePlan, budget: int | None = None, converts: bool = False) -> tuple[Action, ...]:
    return plan_actions(plans, budget, converts=converts)


def test_fewer_come_before_more() -> None:
    actions = _actions(_plan(PREFILL, 2, 4), _plan(DECODE, 5, 4))
    assert actions == (Scale(role=DECODE, workers=4), Scale(role=PREFILL, workers=4))


def test_more_only_for_gpus_that_are_free() -> None:
    prefill = _plan(PREFILL, 2, 5)
    actions = _actions(prefill, _plan(DECODE, 4, 3, draining=1), budget=8)
    assert actions == (Scale(role=DECODE, workers=3), Scale(role=PREFILL, workers=3))
    assert prefill.reasons == ["2 of 5 have to wait until GPUs are free"]
    assert prefill.withheld == 2


def test_surplus_turns_into_what_is_lacking_and_nothing_else() -> None:
    """Decode is held at 8 by its cool-down, but wants 6 only; prefill lacks 4."""
    decode = _plan(DECODE, 8, 8, load=6)
    actions = _actions(_plan(PREFILL, 2, 6), decode, converts=True)
    assert actions == (Convert(source=DECODE, destination=PREFILL, workers=2), Scale(role=PREFILL, workers=6))
    assert decode.target == 6


def test_what_bounds_demand_beyond_the_conversion_is_done() -> None:
    actions = _actions(_plan(PREFILL, 2, 3), _plan(DECODE, 8, 5), converts=True)
    assert actions == (Convert(source=DECODE, destination=PREFILL, workers=1), Scale(role=DECODE, workers=5))


def test_no_conversion_of_other_sizes_nor_while_something_is_under_way() -> None:
    pair = (Scale(role=DECODE, workers=7), Scale(role=PREFILL, workers=3))
    assert _actions(_plan(PREFILL, 2, 3), _plan(DECODE, 8, 7, gpus=2), converts=True) == pair
    assert _actions(_plan(PREFILL, 2, 3, draining=1), _plan(DECODE, 8, 7), converts=True) == pair
    assert _actions(_plan(PREFILL, 2, 3), _plan(DECODE, 8, 7)) == pair
