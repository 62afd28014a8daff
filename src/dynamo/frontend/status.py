"""The routes that say what this frontend can do: models, health, metrics.

Those of OpenAI's API want a key where there are keys; the others are for probes, which have none.
"""

import msgspec
from prometheus_client import generate_latest
from starlette.requests import Request
from starlette.responses import Response

from dynamo.frontend.state import Frontend
from dynamo.llm.served_model import ServedModel
from dynamo.protocols.openai import Model, ModelList
from dynamo.telemetry.metrics import CONTENT_TYPE


class InstanceInfo(msgspec.Struct, kw_only=True):
    """A live worker, as /health lists it."""

    namespace: str
    component: str
    endpoint: str
    instance_id: int


class HealthBody(msgspec.Struct, kw_only=True):
    """The answer of /health."""

    status: str
    models: list[str]
    instances: list[InstanceInfo]


class StatusRoutes:
    """Bound to one frontend."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self._models = frontend.models

    async def list_models(self, request: Request) -> Response:
        client = self._frontend.keys.identify(request.headers)
        models = (model for model in self._models.models() if client.allows(model.card.name))
        return _json(ModelList(data=[_describe(model) for model in models]))

    async def get_model(self, request: Request) -> Response:
        client = self._frontend.keys.identify(request.headers)
        return _json(_describe(self._models.get(request.path_params["model"], client.allows)))

    async def health(self, request: Request) -> Response:
        """200 when a worker is there, 503 when none is."""
        models = self._models.models()
        instances = [
            InstanceInfo(namespace=i.namespace, component=i.component, endpoint=i.endpoint, instance_id=i.instance_id)
            for i in {instance.key: instance for model in models for instance in model.instances()}.values()
        ]
        body = HealthBody(
            status="healthy" if models else "unhealthy", models=[m.card.name for m in models], instances=instances
        )
        return _json(body, 200 if models else 503)

    async def live(self, request: Request) -> Response:
        return _json({"status": "live"})

    async def metrics(self, request: Request) -> Response:
        ready = self._frontend.metrics.ready
        ready.clear()
        for model in self._models.models():
            ready.labels(model.card.name).set(1)
        return Response(generate_latest(self._frontend.registry), media_type=CONTENT_TYPE)


def _describe(model: ServedModel) -> Model:
    return Model(id=model.card.name, created=model.card.created_s)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
