"""What is measured of a request."""

import logging

import pytest
from prometheus_client import CollectorRegistry

from dynamo.errors import InternalError, InvalidRequestError, RequestCancelledError
from dynamo.frontend import tracker as tracker_module
from dynamo.frontend.tracker import ModelMetrics, RequestTracker, log_refused
from dynamo.llm.sequence import TextOutput
from dynamo.telemetry.metrics import FrontendMetrics


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


class Observed:
    """A tracker on a clock of its own, and its metrics."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        monkeypatch.setattr(tracker_module, "time", self.clock)
        self.registry = CollectorRegistry()
        self.metrics = FrontendMetrics(self.registry)
        self.series = ModelMetrics(self.metrics, "m")

    def begin(self, *, stream: bool = True) -> RequestTracker:
        return RequestTracker(self.metrics, self.series, "chat_completions", stream=stream)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"dynamo_frontend_{name}", labels or {"model": "m"})

    def requests(self, status: str, error_type: str = "", kind: str = "stream") -> float | None:
        labels = {"request_type": kind, "status": status, "error_type": error_type}
        return self.value("requests_total", model="m", endpoint="chat_completions", **labels)


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Observed:
    return Observed(monkeypatch)


def test_success(observed: Observed, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dynamo.frontend.access")
    tracker = observed.begin()
    assert (observed.value("inflight_requests"), observed.value("queued_requests")) == (1, 1)
    observed.clock.now_s += 0.2
    tracker.on_output(TextOutput(token_count=1, prompt_tokens=7, cached_tokens=4))
    assert observed.value("queued_requests") == 0
    observed.clock.now_s += 0.3
    tracker.on_output(TextOutput(token_count=3))  # three that have arrived together
    tracker.on_output(TextOutput(token_count=0, finish_reason="stop"))
    observed.clock.now_s += 0.5
    tracker.finish("id", 200, None)

    assert observed.value("time_to_first_token_seconds_sum") == pytest.approx(0.2)
    assert observed.value("inter_token_latency_seconds_count") == 3
    assert observed.value("inter_token_latency_seconds_sum") == pytest.approx(0.3)
    assert observed.value("request_duration_seconds_sum") == pytest.approx(1.0)
    assert observed.value("output_tokens_total") == 4
    assert observed.value("output_sequence_tokens_sum") == 4
    assert observed.value("input_sequence_tokens_sum") == 7
    assert observed.value("cached_tokens_sum") == 4
    assert observed.value("inflight_requests") == 0
    assert observed.requests("success") == 1
    assert caplog.messages == [
        "chat_completions 200 stream id model=m prompt_tokens=7 output_tokens=4 ttft_ms=200.0 duration_ms=1000.0"
    ]


def test_several_prompts_count_together(observed: Observed, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dynamo.frontend.access")
    tracker = observed.begin(stream=False)
    for _ in range(2):
        tracker.on_output(TextOutput(token_count=1, prompt_tokens=5))
    tracker.finish("id", 200, None)
    assert "unary id model=m prompt_tokens=10 output_tokens=2" in caplog.text
    assert observed.value("cached_tokens_count") == 0
    assert observed.requests("success", kind="unary") == 1


def test_failure_before_the_first_token(observed: Observed, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dynamo.frontend.access")
    observed.begin().finish("id", 500, InternalError("x"))
    assert observed.requests("error", "internal_error") == 1
    assert (observed.value("inflight_requests"), observed.value("queued_requests")) == (0, 0)
    assert observed.value("output_sequence_tokens_count") == 0
    assert observed.value("time_to_first_token_seconds_count") == 0
    assert "chat_completions 500 stream id model=m prompt_tokens=-" in caplog.text
    assert "ttft_ms=- " in caplog.text
    assert caplog.text.rstrip().endswith("error=internal_error")


def test_whose_key_it_was(observed: Observed, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dynamo.frontend.access")
    tracker = RequestTracker(observed.metrics, observed.series, "completions", stream=False, client="alice")
    tracker.finish("id", 200, None)
    assert "completions 200 unary id key=alice model=m" in caplog.text


def test_client_that_left(observed: Observed) -> None:
    observed.begin().finish("id", 499, RequestCancelledError("x"))
    assert observed.registry.get_sample_value("dynamo_frontend_disconnected_clients_total") == 1
    assert observed.requests("error", "cancelled") == 1


def test_quiet(observed: Observed, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "dynamo.frontend.access")
    observed.begin().finish("id", 200, None)
    assert not caplog.records


def test_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dynamo.frontend.access")
    log_refused("completions", "id", InvalidRequestError("x"))
    log_refused("completions", "", InvalidRequestError("x"))
    log_refused("completions", "id", InvalidRequestError("x"), "alice")
    assert caplog.messages == [
        "completions 400 refused id error=invalid_request",
        "completions 400 refused - error=invalid_request",
        "completions 400 refused id key=alice error=invalid_request",
    ]
