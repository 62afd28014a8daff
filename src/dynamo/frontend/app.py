"""The frontend's HTTP application: every route, in one place."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dynamo.errors import DynamoError
from dynamo.frontend.errors import on_defect, on_dynamo_error, on_http_exception
from dynamo.frontend.generation import ChatRoute, CompletionRoute
from dynamo.frontend.openapi import get_openapi
from dynamo.frontend.state import Frontend
from dynamo.frontend.status import StatusRoutes


def create_app(frontend: Frontend) -> ASGIApp:
    """The application over the models that `frontend` follows."""
    status = StatusRoutes(frontend)
    generation: dict[str, ASGIApp] = {
        "/v1/chat/completions": ChatRoute(frontend),
        "/v1/completions": CompletionRoute(frontend),
    }
    starlette = Starlette(
        routes=[
            *(Route(path, route, methods=["POST"]) for path, route in generation.items()),
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

    starlette.router.redirect_slashes = False  # a path that is not one of these is a 404, not a redirection

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Past Starlette's middleware, which would handle every token of a stream once more.
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in generation:
            await generation[scope["path"]](scope, receive, send)
        else:
            await starlette(scope, receive, send)

    return app
