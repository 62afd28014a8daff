"""What a scraper learns of a process's routers."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dynamo.telemetry.router_metrics import IndexFigures, RouterFigures, RouterMetrics, WorkerFigures

INDEX = IndexFigures(
    blocks=1,
    believed_blocks=8,
    pruned=2,
    events=3,
    malformed_events=4,
    gaps=5,
    recoveries=6,
    queued_requests=7,
    dumps=9,
    broadcast_feeds=10,
)
WORKERS = tuple(
    WorkerFigures(
        instance_id=2**53 - 1,
        dp_rank=rank,
        prefill_tokens=10 + rank,
        blocks=20 + rank,
        foreign_requests=30 + rank,
        foreign_prefill_tokens=40 + rank,
        foreign_blocks=50 + rank,
    )
    for rank in (0, 1)
)


@dataclass(slots=True)
class Source:
    figures: RouterFigures = field(default_factory=RouterFigures)

    def worker_figures(self) -> Iterable[WorkerFigures]:
        return WORKERS

    def index_figures(self) -> IndexFigures:
        return INDEX


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> RouterMetrics:
    return RouterMetrics(registry)


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """By name, model and the values of the other labels, in their alphabetical order, but for the worker type."""
    return {
        " ".join([sample.name, sample.labels.pop("model"), *_others(sample.labels)]): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def _others(labels: dict[str, str]) -> list[str]:
    assert labels.pop("worker_type") in ("aggregated", "prefill")
    return list(labels.values())


def test_without_a_router_there_is_nothing(registry: CollectorRegistry, metrics: RouterMetrics) -> None:
    assert samples(registry) == {}


def test_every_figure(registry: CollectorRegistry, metrics: RouterMetrics) -> None:
    source = Source()
    metrics.add("m", "aggregated", source)
    source.figures.decided(overlap_tokens=32, cost=1.5, mean_cost=4.0, queued_s=0.0)
    source.figures.decided(overlap_tokens=0, cost=2.0, mean_cost=2.0, queued_s=0.2)
    source.figures.decision_seconds.observe(3e-5)
    source.figures.prefilled(100, 25)
    source.figures.prefilled(100, None)  # an engine that does not say
    found = samples(registry)
    worker = 2**53 - 1
    expected = {
        "dynamo_router_decisions_total m": 2,
        "dynamo_router_prompt_tokens_total m": 200,
        "dynamo_router_cached_tokens_total m": 25,
        "dynamo_router_overlap_tokens_total m": 32,
        "dynamo_router_chosen_cost_blocks_total m": 3.5,
        "dynamo_router_mean_cost_blocks_total m": 6,
        "dynamo_router_hit_ratio m": 0.125,
        "dynamo_router_blocks m": 1,
        "dynamo_router_believed_blocks m": 8,
        "dynamo_router_pruned_blocks_total m": 2,
        "dynamo_router_events_total m": 3,
        "dynamo_router_malformed_events_total m": 4,
        "dynamo_router_event_gaps_total m": 5,
        "dynamo_router_event_dumps_total m": 9,
        "dynamo_router_event_recoveries_total m": 6,
        "dynamo_router_queued_requests m": 7,
        "dynamo_router_queue_wait_seconds_count m": 2,
        "dynamo_router_queue_wait_seconds_sum m": 0.2,
        "dynamo_router_queue_wait_seconds_bucket m 0.1": 1,
        "dynamo_router_queue_wait_seconds_bucket m 0.25": 2,
        "dynamo_router_decision_seconds_count m": 1,
        "dynamo_router_decision_seconds_bucket m 2.5e-05": 0,
        "dynamo_router_decision_seconds_bucket m 5e-05": 1,
    }
    for rank in (0, 1):
        for position, name in enumerate(
            ("prefill_tokens", "active_blocks", "foreign_requests", "foreign_prefill_tokens", "foreign_blocks"), 1
        ):
            expected[f"dynamo_router_worker_{name} m {rank} {worker}"] = 10 * position + rank
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_no_ratio_before_the_first_answer(registry: CollectorRegistry, metrics: RouterMetrics) -> None:
    metrics.add("m", "aggregated", Source())
    assert "dynamo_router_decisions_total m" in samples(registry)
    assert "dynamo_router_hit_ratio m" not in samples(registry)


def test_models_come_and_go(registry: CollectorRegistry, metrics: RouterMetrics) -> None:
    old, new, other = Source(), Source(), Source()
    old.figures.decisions = 5
    metrics.add("m", "aggregated", old)
    metrics.add('quo"ted\n', "aggregated", other)
    metrics.add("m", "aggregated", new)
    metrics.remove("m", "aggregated", old)  # which another has replaced
    assert samples(registry)["dynamo_router_decisions_total m"] == 0
    metrics.remove("m", "aggregated", new)
    assert {name.split(" ")[1] for name in samples(registry)} == {'quo"ted\n'}


def test_pools_of_one_model_are_apart(registry: CollectorRegistry, metrics: RouterMetrics) -> None:
    one, other = Source(), Source()
    one.figures.decisions, other.figures.decisions = 1, 2
    metrics.add("m", "prefill", one)
    metrics.add("m", "decode", other)
    text = generate_latest(registry).decode()
    assert 'dynamo_router_decisions_total{model="m",worker_type="prefill"} 1.0' in text
    assert 'dynamo_router_decisions_total{model="m",worker_type="decode"} 2.0' in text
