"""What a frontend says it was asked for."""

from typing import cast

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from dynamo.errors import InternalError, OverloadedError
from dynamo.frontend.state import Frontend
from dynamo.frontend.tracker import RequestTracker
from dynamo.frontend.traffic import serve_traffic, traffic
from dynamo.llm.model_manager import ModelManager
from dynamo.llm.sequence import TextOutput
from dynamo.protocols.traffic import ModelTraffic
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.telemetry.metrics import FrontendMetrics
from dynamo.testing import within


@pytest.fixture
def frontend() -> Frontend:
    registry = CollectorRegistry()
    return Frontend(
        models=cast("ModelManager", None), registry=registry, metrics=FrontendMetrics(registry), body_limit_bytes=1
    )


def begin(frontend: Frontend, model: str = "m") -> RequestTracker:
    return RequestTracker(frontend.metrics, frontend.series(model), "completions", stream=True)


def only(frontend: Frontend) -> ModelTraffic:
    (model,) = traffic(frontend, 1.0)
    return model


def test_nothing_before_the_first_request(frontend: Frontend) -> None:
    assert traffic(frontend, 1.0) == []


def test_a_request_from_its_arrival_to_its_end(frontend: Frontend) -> None:
    tracker = begin(frontend)
    assert only(frontend) == ModelTraffic(model="m", uptime_s=1.0, arrived_requests=1)
    tracker.on_output(TextOutput(token_count=1, prompt_tokens=7, cached_tokens=4))
    tracker.on_output(TextOutput(token_count=2))
    answered = only(frontend)
    assert (answered.first_tokens, answered.gaps, answered.prompts, answered.finished_requests) == (1, 2, 1, 0)
    assert (answered.prompt_tokens, answered.cached_tokens, answered.output_tokens) == (7, 4, 0)
    assert answered.ttft_s > 0
    assert answered.itl_s > 0
    tracker.finish("id", 200, None)
    ended = only(frontend)
    assert (ended.arrived_requests, ended.finished_requests, ended.output_tokens) == (1, 1, 3)


def test_refused_for_lack_of_room_counts_as_traffic(frontend: Frontend) -> None:
    """And what has arrived never becomes less."""
    waiting, failing = begin(frontend), begin(frontend)
    assert only(frontend).arrived_requests == 2
    waiting.finish("id", 503, OverloadedError("full"))
    failing.finish("id", 500, InternalError("x"))
    ended = only(frontend)
    assert (ended.arrived_requests, ended.finished_requests) == (2, 0)


def test_models_apart(frontend: Frontend) -> None:
    begin(frontend, "a")
    begin(frontend, "b").finish("id", 503, OverloadedError("full"))
    begin(frontend, "b")
    assert {model.model: model.arrived_requests for model in traffic(frontend, 1.0)} == {"a": 1, "b": 2}


async def test_asked_over_the_request_plane(frontend: Frontend) -> None:
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    endpoint = runtime.endpoint("n.frontend.traffic")
    await serve_traffic(endpoint, frontend)
    begin(frontend)
    client = await endpoint.client(response_type=list[ModelTraffic])
    await within(client.wait_for_instances())
    (answer,) = [answer async for answer in await client.generate(None, annotated=False)]
    assert answer[0].uptime_s > 0
    assert [msgspec.structs.replace(each, uptime_s=0.0) for each in answer] == [
        ModelTraffic(model="m", arrived_requests=1)
    ]
    await runtime.close()
