"""A model that is learnt from workers: of the simulated engine, and of workers that say anything."""

import math
import random
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.scheduler import Scheduler
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.planner.learned import LearnedModel
from dynamo.planner.observation import Fleet, Observation
from dynamo.protocols.generation import PreprocessedRequest, StopConditions
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType
from dynamo.tokens import token_array

INTERVAL_S = 5.0
CONFIG = SchedulerConfig(enable_prefix_caching=False)  # no prompt is like another
TIMING = TimingModel()


def observation(now_s: float, loads: Mapping[str, WorkerLoad]) -> Observation:
    fleet = Fleet(desired=len(loads), ready=len(loads), loads=loads)
    return Observation(now_s=now_s, traffic=None, fleets={WorkerType.Aggregated: fleet})


class Worker:
    """The simulated engine in virtual time, with requests of a Poisson process."""

    def __init__(self, seed: int, *, requests_per_s: float, prefill_only: bool = False) -> None:
        self.scheduler = Scheduler(CONFIG, TIMING, Sampler(range(1000, 2000)))
        self.rng = random.Random(seed)
        self.requests_per_s = requests_per_s
        self.prefill_only = prefill_only
        self.now_s = 0.0
        self.next_s = self.rng.expovariate(requests_per_s)

    def run(self, until_s: float) -> WorkerLoad:
        while self.now_s < until_s:
            while self.next_s <= self.now_s:
                self.arrive()
            if self.scheduler.has_work:
                step = self.scheduler.step()
                self.now_s += step.duration_s
                for sequence in step.outputs:
                    self.scheduler.release(sequence)
            else:
                self.now_s = self.next_s
        return msgspec.structs.replace(self.scheduler.load())

    def arrive(self) -> None:
        self.next_s += self.rng.expovariate(self.requests_per_s)
        prompt = token_array([7]) * self.rng.randint(200, 4000)
        self.scheduler.add(
            PreprocessedRequest(
                model="tiny",
                token_ids=prompt,
                stop_conditions=StopConditions(max_tokens=self.rng.randint(50, 300), ignore_eos=True),
                prefill_only=self.prefill_only,
            )
        )


def learnt(*workers: Worker, seconds: float = 200) -> LearnedModel:
    model, now_s = LearnedModel(), 0.0
    while now_s < seconds:
        now_s += INTERVAL_S
        model.observe(observation(now_s, {f"{i}/0": worker.run(now_s) for i, worker in enumerate(workers)}))
    return model


def true_itl_s(context: int, requests: int) -> float:
    usage = requests * -(-context // CONFIG.block_size) / CONFIG.num_blocks
    return TIMING.step_s(new_tokens=0, decoding=True, usage=usage)


def true_prefill_s(tokens: int) -> float:
    return TIMING.step_s(new_tokens=tokens, decoding=False, usage=0)


@pytest.fixture(scope="module")
def model() -> LearnedModel:
    """Of two workers with different loads."""
    return learnt(Worker(1, requests_per_s=2), Worker(2, requests_per_s=5))


def test_learns_what_the_simulated_engine_takes(model: LearnedModel) -> None:
    """Near the load that it has seen."""
    for context, requests in ((1000, 2), (2000, 8), (3000, 12)):
        assert model.itl_s(context, requests) == pytest.approx(true_itl_s(context, requests), rel=0.05)
    for tokens in (1000, 2000, 4000):
        assert model.prefill_s(tokens) == pytest.approx(true_prefill_s(tokens), rel=0.08)
        assert model.prefill_tokens_per_s(tokens) == pytest.approx(tokens / true_prefill_s(tokens), rel=0.08)


def test_learns_from_workers_that_only_prefill() -> None:
    model = learnt(Worker(1, requests_per_s=5, prefill_only=True))
    assert model.prefill_s(2000) == pytest.approx(true_prefill_s(2000), rel=0.05)
    assert model.itl_s(1000, 1) is None
    assert model.concurrency(1000, 0.1) is None


def test_the_concurrency_is_that_at_which_the_time_is_kept(model: LearnedModel) -> None:
    itl_s = true_itl_s(2000, 10)
    assert model.concurrency(2000, itl_s) == pytest.approx(10, rel=0.15)
    assert model.concurrency(2000, 1e-6) == 1


def test_nothing_is_said_of_many_more_requests_than_it_has_seen() -> None:
    """Steps of 10 ms that never grow would otherwise promise an endless number."""
    assert model_of_steps(batch=4).concurrency(100, 0.05) == 8


def model_of_steps(batch: int, ticks: int = 20) -> LearnedModel:
    """Of steps of 10 ms."""
    model = LearnedModel()
    for tick in range(ticks):
        model.observe(observation(tick * INTERVAL_S, {"a": load_after(tick, batch)}))
    return model


def load_after(ticks: int, batch: int = 4) -> WorkerLoad:
    steps = 100 * ticks
    return WorkerLoad(
        busy_s=0.01 * steps, decode_steps=steps, decoded_tokens=batch * steps, kv_token_steps=100 * batch * steps
    )


def test_knows_nothing_at_first() -> None:
    model = LearnedModel()
    assert (model.prefill_s(100), model.prefill_tokens_per_s(100)) == (None, None)
    assert (model.itl_s(100, 1), model.concurrency(100, 0.1)) == (None, None)
    model.observe(observation(0, {"a": load_after(1)}))
    assert model.itl_s(100, 4) is None


def test_a_worker_that_was_started_anew_is_learnt_from_again() -> None:
    model = LearnedModel()
    for tick, load in enumerate([load_after(9), load_after(1), *(load_after(n) for n in range(2, 9))]):
        model.observe(observation(tick * INTERVAL_S, {"a": load}))
    assert model.itl_s(100, 4) == pytest.approx(0.01, rel=0.01)


def test_missing_fleets_and_loads_are_no_news() -> None:
    model = model_of_steps(batch=4)
    before = model.itl_s(100, 4)
    model.observe(Observation(now_s=1, traffic=None, fleets=None))
    model.observe(Observation(now_s=2, traffic=None, fleets={WorkerType.Decode: Fleet(desired=1, ready=1)}))
    assert model.itl_s(100, 4) == before == pytest.approx(0.01, rel=0.01)


NUMBERS = st.integers(-(2**62), 2**62)
LOADS = st.builds(
    WorkerLoad,
    busy_s=st.floats(),
    prefill_steps=NUMBERS,
    prefilled_tokens=NUMBERS,
    decode_steps=NUMBERS,
    decoded_tokens=NUMBERS,
    kv_token_steps=NUMBERS,
)


@given(st.lists(st.dictionaries(st.sampled_from("ab"), LOADS | st.builds(load_after, st.integers(0, 9))), max_size=20))
@settings(deadline=None)
def test_whatever_workers_say_the_answers_are_numbers(ticks: list[dict[str, WorkerLoad]]) -> None:
    model = LearnedModel()
    for tick, loads in enumerate(ticks):
        model.observe(observation(tick, loads))
        answers = (
            model.prefill_s(100),
            model.prefill_tokens_per_s(100),
            model.itl_s(100, 4),
            model.concurrency(100, 0.1),
        )
        assert all(answer is None or 0 < answer < math.inf for answer in answers)
