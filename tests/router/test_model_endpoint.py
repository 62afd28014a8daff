"""Where routers are found."""

from dynamo.router.model_endpoint import model_endpoint
from dynamo.runtime.instance import EndpointId

WORKERS = EndpointId("test", "backend", "generate")


def test_beside_the_workers_whatever_the_model_is_called() -> None:
    models = ["", "m", "M", "org/model:7b é", "x" * 1000]
    found = [model_endpoint(WORKERS, role, model) for role in ("router", "router_sync") for model in models]
    assert len(set(found)) == len(found)
    for endpoint in found:
        assert EndpointId.parse(str(endpoint)) == endpoint
        assert (endpoint.namespace, endpoint.component) == ("test", "backend")
