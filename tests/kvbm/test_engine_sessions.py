"""When slots of an engine are free again: as soon as nobody can write to them, and no sooner."""

from typing import cast

from dynamo.kvbm.engine_sessions import Engine
from dynamo.kvbm.pool_shell import PoolShell


class Pool:
    """What a PoolShell hears."""

    def __init__(self) -> None:
        self.attached = 0
        self.muted: list[int] = []
        self.detached: list[int] = []

    def attach(self, send: object) -> int:
        self.attached += 1
        return self.attached

    def mute(self, session: int) -> None:
        self.muted.append(session)

    def detach(self, session: int) -> None:
        self.detached.append(session)


def engine() -> tuple[Engine, Pool]:
    pool = Pool()
    return Engine(cast("PoolShell", pool)), pool


def nobody(_: object) -> None: ...


def test_a_session_ends_with_the_last_process_of_its_engine() -> None:
    one, pool = engine()
    one.add_rank("rank 0")
    one.add_scheduler("scheduler", nobody)
    one.add_rank("rank 1")
    one.remove("scheduler")
    one.remove("rank 1")
    assert (pool.muted, pool.detached, one.is_gone) == ([1], [], False)
    one.remove("rank 0")
    assert (pool.detached, one.is_gone) == ([1], True)


def test_a_scheduler_that_comes_again_has_another_session_and_the_ranks_use_both() -> None:
    one, pool = engine()
    one.add_scheduler("before", nobody)
    one.add_rank("old rank")
    one.remove("before")
    assert one.add_scheduler("after", nobody).number == 2
    one.add_rank("new rank")
    one.remove("old rank")
    assert pool.detached == [1], "the new rank has nothing of the former session"
    one.remove("after")
    assert pool.detached == [1]
    one.remove("new rank")
    assert (pool.detached, one.is_gone) == ([1, 2], True)


def test_ranks_alone_are_an_engine() -> None:
    one, pool = engine()
    one.add_rank("rank")
    assert not one.is_gone
    one.remove("rank")
    assert one.is_gone
    assert pool.attached == 0
