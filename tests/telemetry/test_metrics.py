"""The text that a scraper gets, read by Prometheus' own parser."""

from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as TheirHistogram
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from dynamo.telemetry.metrics import ComponentMetrics, FrontendMetrics, Histogram, Tally


def scrape(registry: CollectorRegistry) -> list[Sample]:
    text = generate_latest(registry).decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def values(samples: Iterable[Sample], name: str) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels.values()): sample.value for sample in samples if sample.name == name}


def test_histogram_is_what_prometheus_would_have_written() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bounds = (0.1, 1.0, 10.0)
    mine = Histogram("h_seconds", "A histogram", ("model",), bounds, ours)
    reference = TheirHistogram("h_seconds", "A histogram", ("model",), buckets=bounds, registry=theirs)
    for model in ("a", 'quo"ted\\\n'):
        for value in (0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 100.0):
            mine.labels(model).observe(value)
            reference.labels(model).observe(value)
    expected = [sample for sample in scrape(theirs) if not sample.name.endswith("_created")]
    assert sorted(map(repr, scrape(ours))) == sorted(map(repr, expected))


def test_observing_many_at_once() -> None:
    one, many = CollectorRegistry(), CollectorRegistry()
    child = Histogram("h", "h", (), (1.0, 2.0), one).labels()
    for _ in range(3):
        child.observe(1.5)
    Histogram("h", "h", (), (1.0, 2.0), many).labels().observe(1.5, times=3)
    assert generate_latest(one) == generate_latest(many)


def test_tally() -> None:
    registry = CollectorRegistry()
    tally = Tally("tokens_total", "Tokens", ("model",), registry)
    tally.labels("m").add(5)
    tally.labels("m").add(2)
    assert values(scrape(registry), "tokens_total") == {("m",): 7}


def test_endpoints() -> None:
    registry = CollectorRegistry()
    metrics = ComponentMetrics(registry)
    endpoint = metrics.endpoint("ns", "comp", "gen")
    assert metrics.endpoint("ns", "comp", "gen") is endpoint
    metrics.endpoint("ns", "comp", "idle")
    endpoint.started()
    endpoint.started()
    endpoint.ended(0.3, None)
    endpoint.started()
    endpoint.ended(200.0, "overloaded")
    samples = scrape(registry)
    labels = ("comp", "gen", "ns")  # in the order of their names
    assert values(samples, "dynamo_component_requests_total")[labels] == 3
    assert values(samples, "dynamo_component_inflight_requests")[labels] == 1
    assert values(samples, "dynamo_component_inflight_requests")["comp", "idle", "ns"] == 0
    assert values(samples, "dynamo_component_errors_total") == {(*labels, "overloaded"): 1}
    assert values(samples, "dynamo_component_request_duration_seconds_count")[labels] == 2
    assert values(samples, "dynamo_component_request_duration_seconds_sum")[labels] == pytest.approx(200.3)
    buckets = values(samples, "dynamo_component_request_duration_seconds_bucket")
    assert [buckets[*labels, le] for le in ("0.25", "0.5", "120.0", "+Inf")] == [0, 1, 1, 2]


def test_both_sets_fit_into_one_registry() -> None:
    registry = CollectorRegistry()
    ComponentMetrics(registry)
    FrontendMetrics(registry)
    assert scrape(registry) is not None
    with pytest.raises(ValueError, match="uplicated"):
        FrontendMetrics(registry)
