"""The frontend's HTTP application: every route, in one place."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from dynamo.errors import DynamoError
from dynamo.frontend.errors import on_defect, on_dynamo_error, on_http_exception
from dynamo.frontend.generation import ChatRoute, CompletionRoute
from dynamo.frontend.openapi import get_openapi
from dynamo.frontend.state import Frontend
from dynamo.frontend.status import StatusRoutes


def create_app(frontend: Frontend) -> Starlette:
    """The application over the models that `frontend` follows."""
    status = StatusRoutes(frontend)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", ChatRoute(frontend), methods=["POST"]),
            Route("/v1/completions", CompletionRoute(frontend), methods=["POST"]),
            Route("/v1/models", status.list_models),
            Route("/v1/models/{model:path}", status.get_model),
            Route("/health", status.health),
            Route("/live", status.live),
            Route("/metrics", status.metrics),
            Route("/openapi.json", get_openapi),
        ],
        exception_handlers={
            HTTPException: on_http_exception,
            DynamoError: on_dynamo_error,
            Exception: on_defect,
        },
    )
