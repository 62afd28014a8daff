"""What a scrape says of disaggregation."""

from prometheus_client import CollectorRegistry, generate_latest

from dynamo.telemetry.disagg_metrics import DisaggFigures, DisaggMetrics


def test_figures_of_a_model() -> None:
    registry = CollectorRegistry()
    metrics = DisaggMetrics(registry)
    figures = DisaggFigures()
    metrics.add("m", figures)
    figures.decided("remote", "unconditional")
    figures.decided("local", "short")
    figures.decided("local", "short")
    figures.handed_on(0.02)
    text = generate_latest(registry).decode()
    assert 'dynamo_disagg_requests_total{model="m",prefill="local",reason="short"} 2.0' in text
    assert 'dynamo_disagg_requests_total{model="m",prefill="remote",reason="unconditional"} 1.0' in text
    assert 'dynamo_disagg_prefill_seconds_bucket{le="0.01",model="m"} 0.0' in text
    assert 'dynamo_disagg_prefill_seconds_bucket{le="0.025",model="m"} 1.0' in text
    metrics.remove("m", DisaggFigures())  # of one that has been replaced
    assert 'model="m"' in generate_latest(registry).decode()
    metrics.remove("m", figures)
    assert 'model="m"' not in generate_latest(registry).decode()
