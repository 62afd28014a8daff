"""The two routes that generate: from an HTTP request to the request path and back."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from dynamo.errors import DynamoError, InternalError, RequestCancelledError, UnavailableError
from dynamo.frontend.admission import read_body, request_id, session_id, timeout_s
from dynamo.frontend.exchange import take_exchange
from dynamo.frontend.response import HttpResponse
from dynamo.frontend.state import Frontend
from dynamo.frontend.tracker import RequestTracker, log_refused
from dynamo.llm.aggregate import Answer
from dynamo.llm.delta import ChatEvents, CompletionEvents, EventStream, ResponseHead
from dynamo.llm.pipeline import Pipeline
from dynamo.llm.sequence import TextOutput
from dynamo.llm.served_model import ServedModel
from dynamo.protocols.openai import (
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    decode_chat,
    decode_completion,
)
from dynamo.protocols.routing import SESSION_ID
from dynamo.runtime.context import Context
from dynamo.runtime.deadline import in_time
from dynamo.runtime.stage import Deliver

logger = logging.getLogger(__name__)

_DONE_EVENT = b"data: [DONE]\n\n"

RequestT = TypeVar("RequestT", ChatCompletionRequest, CompletionRequest)


class GenerationRoute(ABC, Generic[RequestT]):
    """An ASGI application for one route. Raw ASGI, because it runs for every token."""

    endpoint: str  # the route's name in metrics and logs
    id_prefix: str

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        exchange = take_exchange(scope)
        response = HttpResponse(send, exchange, self._frontend.overload.overload_status)
        name = ""
        with ExitStack() as visit:
            try:
                context = Context(request_id(headers), traceparent=headers.get("traceparent"))
                response.request_id = context.id()
                client = self._frontend.keys.identify(headers)
                name = client.name
                visit.enter_context(client.visit())
                self._fill(context, headers)
                async with in_time(context):
                    held = visit.enter_context(self._frontend.bodies.hold())
                    body = await read_body(headers, receive, self._frontend.body_limit_bytes, held)
                request = self._decode(body)
                model = self._frontend.models.get(request.model, client.allows)
            except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001 - the boundary of a request's task
                error = _for_client(failure, response.request_id)
                self._frontend.metrics.refused.labels(error.code).inc()
                log_refused(self.endpoint, response.request_id, error, name)
                await response.fail(error)
                return
            exchange.follow(context)
            await self._serve(model, request, body, response, context, name)

    def _fill(self, context: Context, headers: Headers) -> None:
        """What the client says of its request beside the body; raises InvalidRequestError."""
        if (session := session_id(headers)) is not None:
            context.metadata[SESSION_ID] = session
        if (timeout := timeout_s(headers, self._frontend.request_timeout_s)) is not None:
            context.deadline_s = time.monotonic() + timeout

    async def _serve(
        self,
        model: ServedModel,
        request: RequestT,
        body: bytes,
        response: HttpResponse,
        context: Context,
        client: str,
    ) -> None:
        """Whatever happens, the client gets an answer or an error, and the request is accounted for."""
        series = self._frontend.series(model.card.name)
        tracker = RequestTracker(
            self._frontend.metrics, series, self.endpoint, stream=bool(request.stream), client=client
        )
        error: DynamoError | None = None
        try:
            guard = self._frontend.guard(model.card.name)
            async with in_time(context), guard.admitted(len(body), context) as tracker.place:
                whole = await self._answer(model.pipeline, request, body, context, response, tracker)
            if whole is not None:
                await response.whole(whole)
        except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001 - the boundary of a request's task
            error = _for_client(failure, response.request_id)
            if isinstance(error, RequestCancelledError) and not context.is_killed():
                error = UnavailableError("the engine has given the request up")
        tracker.finish(response.request_id, response.status(error), error)
        if error is not None:
            await response.fail(error)

    async def _answer(
        self,
        pipeline: Pipeline,
        request: RequestT,
        body: bytes,
        context: Context,
        response: HttpResponse,
        tracker: RequestTracker,
    ) -> bytes | None:
        """The body of the response; None where it has been streamed."""
        head = ResponseHead(
            id=f"{self.id_prefix}{response.request_id}", created_s=int(time.time()), model=request.model
        )
        if request.stream:
            events = self._events(request, head)

            def send(output: TextOutput) -> bool:
                tracker.on_output(output)
                if event := events.encode(output):
                    response.event(event)
                return True

            await self._run(pipeline, request, body, context, send)
            response.end(events.finish() + _DONE_EVENT)
            return None

        answer = Answer()

        def collect(output: TextOutput) -> bool:
            tracker.on_output(output)
            return answer.add(output)

        await self._run(pipeline, request, body, context, collect)
        return msgspec.json.encode(self._whole(answer, request, head))

    @abstractmethod
    def _decode(self, body: bytes) -> RequestT: ...

    @abstractmethod
    async def _run(
        self, pipeline: Pipeline, request: RequestT, body: bytes, context: Context, deliver: Deliver[TextOutput]
    ) -> None: ...

    @abstractmethod
    def _events(self, request: RequestT, head: ResponseHead) -> EventStream[Any]: ...

    @abstractmethod
    def _whole(self, answer: Answer, request: RequestT, head: ResponseHead) -> ChatCompletion | Completion: ...


class ChatRoute(GenerationRoute[ChatCompletionRequest]):
    """POST /v1/chat/completions"""

    endpoint = "chat_completions"
    id_prefix = "chatcmpl-"

    def _decode(self, body: bytes) -> ChatCompletionRequest:
        return decode_chat(body)

    async def _run(
        self,
        pipeline: Pipeline,
        request: ChatCompletionRequest,
        body: bytes,
        context: Context,
        deliver: Deliver[TextOutput],
    ) -> None:
        await pipeline.chat(request, body, context, deliver)

    def _events(self, request: ChatCompletionRequest, head: ResponseHead) -> ChatEvents:
        return ChatEvents(request, head)

    def _whole(self, answer: Answer, request: ChatCompletionRequest, head: ResponseHead) -> ChatCompletion:
        return answer.as_chat(request, head)


class CompletionRoute(GenerationRoute[CompletionRequest]):
    """POST /v1/completions"""

    endpoint = "completions"
    id_prefix = "cmpl-"

    def _decode(self, body: bytes) -> CompletionRequest:
        return decode_completion(body)

    async def _run(
        self,
        pipeline: Pipeline,
        request: CompletionRequest,
        body: bytes,
        context: Context,
        deliver: Deliver[TextOutput],
    ) -> None:
        await pipeline.completion(request, body, context, deliver)

    def _events(self, request: CompletionRequest, head: ResponseHead) -> CompletionEvents:
        return CompletionEvents(request, head)

    def _whole(self, answer: Answer, request: CompletionRequest, head: ResponseHead) -> Completion:
        return answer.as_completion(request, head)


def _for_client(failure: BaseException, request_id: str) -> DynamoError:
    if isinstance(failure, DynamoError):
        return failure
    if isinstance(failure, asyncio.CancelledError):
        return UnavailableError("the server is shutting down and could not wait any longer")
    logger.error("request %s failed", request_id, exc_info=failure)
    return InternalError(f"internal error; the server's log says more ({type(failure).__name__})")
