"""What has become of orders."""

from dynamo.planner.observation import Fleet
from dynamo.planner.reconcile import Ledger
from dynamo.protocols.model_card import WorkerType


def _ledger() -> Ledger:
    ledger = Ledger(WorkerType.Decode, 60)
    ledger.compare(Fleet(desired=3, ready=3), 0)
    return ledger


def test_an_order_that_shows_is_nobody_elses() -> None:
    ledger = _ledger()
    ledger.ordered(5, 0)
    standing = ledger.compare(Fleet(desired=5, ready=3, starting_s=(1, 1)), 5)
    assert (standing.changed_from, standing.problems, standing.held, standing.settled) == (None, (), 5, False)
    assert ledger.compare(Fleet(desired=5, ready=5), 10).settled


def test_an_order_that_does_not_show_is_reported_and_counts() -> None:
    ledger = _ledger()
    ledger.ordered(5, 0)
    standing = ledger.compare(Fleet(desired=3, ready=3), 5)
    assert standing.problems == ("decode: 5 were asked for, it is still 3",)
    assert (standing.held, standing.ask_again, standing.changed_from) == (5, True, None)


def test_late_orders_show_one_after_the_other() -> None:
    ledger = _ledger()
    ledger.ordered(5, 0)
    ledger.compare(Fleet(desired=3, ready=3), 5)
    ledger.ordered(4, 5)
    assert ledger.compare(Fleet(desired=5, ready=5), 10).changed_from is None
    assert ledger.compare(Fleet(desired=4, ready=4, draining=1), 15).held == 5


def test_an_order_that_takes_back_another_starts_one_while_one_drains() -> None:
    ledger = _ledger()
    ledger.ordered(2, 0)
    ledger.compare(Fleet(desired=3, ready=3), 5)
    ledger.ordered(3, 5)
    standing = ledger.compare(Fleet(desired=3, ready=3), 10)
    assert (standing.ordered, standing.held) == (3, 4)


def test_an_order_is_given_up_after_the_timeout() -> None:
    ledger = _ledger()
    ledger.ordered(5, 0)
    assert ledger.compare(Fleet(desired=3, ready=3), 59).held == 5
    assert ledger.compare(Fleet(desired=3, ready=3), 60).held == 3


def test_somebody_elses_change() -> None:
    ledger = _ledger()
    standing = ledger.compare(Fleet(desired=7, ready=3), 5)
    assert standing.changed_from == 3
    assert any("somebody changed 3 to 7" in problem for problem in standing.problems)
    assert ledger.compare(Fleet(desired=7, ready=7), 10).changed_from is None


def test_workers_that_do_not_get_ready() -> None:
    standing = _ledger().compare(Fleet(desired=3, ready=1, starting_s=(61, 10)), 5)
    assert (standing.stuck, standing.problems) == (1, ("decode: 1 not ready after 60 s",))


def test_workers_that_do_not_end_are_reported_and_not_waited_for() -> None:
    ledger = _ledger()
    ending = Fleet(desired=3, ready=3, draining=1)
    for now_s in (5, 64):
        standing = ledger.compare(ending, now_s)
        assert (standing.draining, standing.problems, standing.settled) == (1, (), False)
    standing = ledger.compare(ending, 65)
    assert (standing.draining, standing.problems) == (0, ("decode: 1 have not ended within 60 s",))
    assert (standing.settled, standing.held) == (True, 4), "it still has its GPUs"
    ledger.compare(Fleet(desired=3, ready=3), 70)
    assert ledger.compare(ending, 75).draining == 1


def test_lost_workers_are_asked_for_again_when_it_lasts() -> None:
    ledger = _ledger()
    assert not ledger.compare(Fleet(desired=3, ready=1), 5).ask_again
    standing = ledger.compare(Fleet(desired=3, ready=1), 10)
    assert standing.ask_again
    assert standing.problems == ("decode: 2 of 3 are neither ready nor starting",)
