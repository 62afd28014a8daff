"""Whatever happens in whatever order: what lies under a key is the content of that key, and nothing is lost or kept.

The modelled engine and service look at the contents: when a block is committed, loaded, or read by a request.
"""

from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from .modelled_engine import RANKS, Engine, Request, Service

SLOTS = 8
BLOCKS = 5
STEPS_MAX = 500


class Connected(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.service = Service(SLOTS)
        self.engine = Engine(self.service, BLOCKS)
        self.requests = 0

    @rule(beginning=strategies.integers(0, 1), length=strategies.integers(1, 9), end=strategies.integers(0, 1))
    def request(self, beginning: int, length: int, end: int) -> None:
        self.requests += 1
        tokens = [beginning] * length + [end]
        self.engine.add(Request(f"request {self.requests}", tokens[:9]))

    @rule(count=strategies.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    @rule(rank=strategies.integers(0, RANKS - 1))
    def copy(self, rank: int) -> None:
        copier = self.engine.copiers[rank]
        if copier is not None:
            copier.progress()

    @rule(rank=strategies.integers(0, RANKS - 1), eager=strategies.booleans())
    def eagerness(self, rank: int, eager: bool) -> None:
        copier = self.engine.copiers[rank]
        if copier is not None:
            copier.eager = eager

    @rule(rank=strategies.integers(0, RANKS - 1))
    def lose_memory(self, rank: int) -> None:
        self.engine.ranks[rank].close()
        self.engine.copiers[rank] = None

    @rule(mappable=strategies.booleans())
    def mapping(self, mappable: bool) -> None:
        self.service.mappable = mappable

    @precondition(lambda self: self.engine.waiting)
    @rule(at=strategies.integers(0, 100))
    def abort_waiting(self, at: int) -> None:
        self.engine.abort(self.engine.waiting[at % len(self.engine.waiting)])

    @precondition(lambda self: self.engine.running)
    @rule(at=strategies.integers(0, 100))
    def abort_running(self, at: int) -> None:
        self.engine.abort(self.engine.running[at % len(self.engine.running)])

    @precondition(lambda self: self.service.connected)
    @rule(beginning=strategies.integers(0, 1), blocks=strategies.integers(1, 4))
    def another_engine(self, beginning: int, blocks: int) -> None:
        for key in Request("elsewhere", [beginning] * 8).keys(0, blocks):
            self.service.store(key)

    @precondition(lambda self: self.service.connected)
    @rule()
    def evict(self) -> None:
        self.service.evict()

    @rule(silent=strategies.booleans())
    def silence(self, silent: bool) -> None:
        self.service.silent = silent

    @precondition(lambda self: self.service.lookups)
    @rule()
    def half_an_answer(self) -> None:
        for lookup in list(self.service.lookups):
            self.service.reply(lookup, all_of_it=False)

    @rule(seconds=strategies.sampled_from([0.1, 2.0]))
    def time(self, seconds: float) -> None:
        self.engine.now_s += seconds

    @rule()
    def kill_service(self) -> None:
        self.service.die()

    @precondition(lambda self: not self.service.connected)
    @rule()
    def restart_service(self) -> None:
        self.service.start()

    @invariant()
    def every_slot_is_in_one_place(self) -> None:
        self.service.check()

    def teardown(self) -> None:
        """All comes to its end, and nothing is held after it."""
        if not self.service.connected:
            self.service.start()
        for _ in range(STEPS_MAX):
            self.service.silent, self.service.mappable = False, True
            self.engine.now_s += 0.1
            self.engine.step()
            for copier in self.engine.copiers:
                if copier is not None:
                    copier.progress()
            if self.engine.idle:
                break
        assert self.engine.idle
        assert not self.service.lookups
        assert not self.service.filling


Connected.TestCase.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
TestConnected = Connected.TestCase
