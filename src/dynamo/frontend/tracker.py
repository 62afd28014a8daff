"""What is measured of one request, and the line it leaves in the access log."""

import logging
import time

from dynamo.errors import DynamoError, RequestCancelledError
from dynamo.frontend.overload_guard import Place
from dynamo.llm.sequence import TextOutput
from dynamo.telemetry.metrics import FrontendMetrics

access_logger = logging.getLogger("dynamo.frontend.access")


def log_refused(endpoint: str, request_id: str, error: DynamoError, client: str = "") -> None:
    """The access log's line for a request that was refused before its model was known. `client`: the key's name."""
    access_logger.info(
        "%s %d refused %s%s error=%s", endpoint, error.http_status, request_id or "-", _key(client), error.code
    )


class ModelMetrics:
    """The series of one model, looked up once."""

    def __init__(self, metrics: FrontendMetrics, model: str) -> None:
        self.model = model
        self.inflight = metrics.inflight.labels(model)
        self.queued = metrics.queued.labels(model)
        self.output_tokens = metrics.output_tokens.labels(model)
        self.time_to_first_token = metrics.time_to_first_token.labels(model)
        self.inter_token_latency = metrics.inter_token_latency.labels(model)
        self.duration = metrics.duration.labels(model)
        self.input_tokens = metrics.input_tokens.labels(model)
        self.output_sequence = metrics.output_sequence.labels(model)
        self.cached_tokens = metrics.cached_tokens.labels(model)


class RequestTracker:
    """Follows one request of a known model from its admission to its end."""

    __slots__ = (
        "_client", "_endpoint", "_first_s", "_itl", "_last_s", "_metrics", "_outputs", "_prompt_tokens", "_series",
        "_started_s", "_stream", "_tokens", "place",
    )  # fmt: skip

    def __init__(
        self, metrics: FrontendMetrics, series: ModelMetrics, endpoint: str, *, stream: bool, client: str = ""
    ) -> None:
        """`client`: the name of its key."""
        self._client = client
        self._metrics = metrics
        self._series = series
        self._endpoint = endpoint
        self._stream = stream
        self._started_s = time.perf_counter()
        self._first_s: float | None = None
        self._last_s = 0.0
        self._tokens = 0
        self.place: Place | None = None  # among the requests of its model
        self._prompt_tokens: int | None = None
        self._itl = series.inter_token_latency
        self._outputs = series.output_tokens
        series.inflight.inc()
        series.queued.inc()

    def on_output(self, output: TextOutput) -> None:
        """Tokens that have arrived together share the time since the last."""
        now_s = time.perf_counter()
        count = output.token_count
        if self._first_s is None:
            self._first_s = now_s
            self._series.queued.dec()
            self._series.time_to_first_token.observe(now_s - self._started_s)
            if self.place is not None:
                self.place.answered(output.prompt_tokens)
        elif count:
            self._itl.observe((now_s - self._last_s) / count, count)
        if output.prompt_tokens is not None:
            self._on_prompt(output.prompt_tokens, output.cached_tokens)
        self._last_s = now_s
        self._tokens += count
        self._outputs.add(count)

    def _on_prompt(self, prompt_tokens: int, cached_tokens: int | None) -> None:
        self._prompt_tokens = (self._prompt_tokens or 0) + prompt_tokens
        self._series.input_tokens.observe(prompt_tokens)
        if cached_tokens is not None:
            self._series.cached_tokens.observe(cached_tokens)

    def finish(self, request_id: str, status: int, error: DynamoError | None) -> None:
        """Called once, whatever became of the request."""
        series = self._series
        duration_s = time.perf_counter() - self._started_s
        series.inflight.dec()
        if self._first_s is None:
            series.queued.dec()
        series.duration.observe(duration_s)
        if error is None:
            series.output_sequence.observe(self._tokens)
        elif isinstance(error, RequestCancelledError):
            self._metrics.disconnected.inc()
        kind = "stream" if self._stream else "unary"
        outcome = ("success", "") if error is None else ("error", error.code)
        self._metrics.requests.labels(series.model, self._endpoint, kind, *outcome).inc()
        if access_logger.isEnabledFor(logging.INFO):
            access_logger.info(
                "%s %d %s %s%s model=%s prompt_tokens=%s output_tokens=%d ttft_ms=%s duration_ms=%.1f%s",
                self._endpoint,
                status,
                kind,
                request_id,
                _key(self._client),
                series.model,
                self._prompt_tokens if self._prompt_tokens is not None else "-",
                self._tokens,
                f"{(self._first_s - self._started_s) * 1000:.1f}" if self._first_s is not None else "-",
                duration_s * 1000,
                f" error={error.code}" if error is not None else "",
            )


def _key(client: str) -> str:
    return f" key={client}" if client else ""
