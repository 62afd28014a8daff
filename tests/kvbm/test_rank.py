"""A rank's half of the connector; copies and their order are in test_connector_properties.py."""

from dynamo.errors import ConnectionLostError
from dynamo.kvbm.jobs import Save, Step
from dynamo.kvbm.rank import RETRY_S, Copier, Pool, Rank

ATTEMPT_S = 2.0


class Hanging:
    """A service that is waited for in vain."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.attempts = 0

    def map(self) -> Pool:
        self.attempts += 1
        self.now_s += ATTEMPT_S
        raise ConnectionLostError("it does not answer")

    def copier(self, pool: Pool) -> Copier:
        raise AssertionError("there is no pool")


def test_steps_do_not_wait_again_and_again_for_memory_that_cannot_be_mapped() -> None:
    service = Hanging()
    rank = Rank(service.map, service.copier, lambda: service.now_s)
    for job in range(10):
        rank.begin(Step(saves=(Save(job, "pool", (0,), (0,)),)))
    assert service.attempts == 1
    rank.collect()
    done = rank.take_done()
    assert done is not None
    assert done.failed == set(range(10))
    service.now_s += RETRY_S
    rank.begin(Step(saves=(Save(10, "pool", (0,), (0,)),)))
    assert service.attempts == 2
