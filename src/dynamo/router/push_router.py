"""The network edge of the request path: chooses a worker, sends the request, passes the reply on."""

import logging
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from dynamo.errors import DynamoError, InvalidRequestError, NoInstancesError, UnavailableError
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest, WorkerId, merge_outputs
from dynamo.router.selection import RouterMode, make_selector
from dynamo.runtime.client import Client, ReplyStream
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.context import Context

logger = logging.getLogger(__name__)

_TARGET = "nvext.backend_instance_id"  # the request's field that names a worker


class PushRouter:
    """Sends each request to one of the workers of a model.

    `serves` says whether an instance of the endpoint belongs to the model (several models may share an endpoint). A
    worker that fails before its first output loses the request to another one; after that its error is the answer.
    """

    def __init__(
        self,
        client: Client,
        mode: RouterMode,
        serves: Callable[[int], bool],
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._mode = mode
        self._serves = serves
        self._selector = make_selector(mode, rng or random.Random())  # noqa: S311 - no secrets here
        self._in_flight: Counter[int] = Counter()

    def workers(self) -> list[int]:
        """The instances that a request could go to now: those that just failed only if there are no others."""
        workers = [i for i in self._client.instance_ids() if self._serves(i)]
        available = set(self._client.available_ids())
        return [i for i in workers if i in available] or workers

    async def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        """Tokens for tokens: outputs that have arrived together come as one."""
        batches = self._batches(request, context, request.target, _decode_output)
        async with aclosing(batches):
            first = True
            async for worker, outputs in batches:
                output = merge_outputs(outputs)
                if first:
                    output.worker_id = worker
                    first = False
                yield output

    async def generate_text(self, request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        """The OpenAI request for OpenAI chunks, for workers that take text."""
        batches = self._batches(request, context, _text_target(request), _decode_any)
        async with aclosing(batches):
            async for _, chunks in batches:
                for chunk in chunks:
                    yield chunk

    async def _batches(
        self, request: Any, context: Context, target: WorkerId | None, decode: Callable[[Any], Any]
    ) -> AsyncGenerator[tuple[WorkerId, list[Any]], None]:
        """The reply in batches of what arrived together, and who sent it."""
        payload = _encode(request)
        failed: dict[int, DynamoError] = {}
        while True:
            worker = self._choose(target, failed)
            instance_id = worker.instance_id
            self._in_flight[instance_id] += 1
            try:
                stream, batch = await self._first_batch(instance_id, payload, context, decode)
                async with aclosing(stream):
                    while batch:
                        yield worker, batch
                        batch = await stream.next_batch()
                return
            except _StartError as failure:
                if target is not None:
                    raise failure.error from None
                logger.warning("request %s: instance %x: %s", context.id(), instance_id, failure.error)
                self._client.avoid(instance_id)
                failed[instance_id] = failure.error
            finally:
                self._in_flight[instance_id] -= 1
                if not self._in_flight[instance_id]:
                    del self._in_flight[instance_id]  # instances come and go

    async def _first_batch(
        self, instance_id: int, payload: bytes, context: Context, decode: Callable[[Any], Any]
    ) -> tuple[ReplyStream[Any], list[Any]]:
        """Raises _StartError for what another worker may do better."""
        try:
            stream = ReplyStream(await self._client.call(instance_id, payload, context), decode, instance_id)
            try:
                return stream, await stream.next_batch()
            except BaseException:
                await stream.aclose()
                raise
        except DynamoError as error:
            if error.retryable:
                raise _StartError(error) from error
            raise

    def _choose(self, target: WorkerId | None, failed: Mapping[int, DynamoError]) -> WorkerId:
        if target is not None:
            if target.instance_id not in self._client.instance_ids() or not self._serves(target.instance_id):
                raise InvalidRequestError(f"there is no worker {target.instance_id} for this model", param=_TARGET)
            return target
        if self._mode is RouterMode.DIRECT:
            raise InvalidRequestError(f"the router is in direct mode: name a worker in {_TARGET}", param=_TARGET)
        candidates = [i for i in self.workers() if i not in failed]
        if not candidates:
            # What the last one said of its state says more than that a connection failed.
            said = [error for error in failed.values() if isinstance(error, UnavailableError)]
            raise said[-1] if said else NoInstancesError("no worker can take this request right now")
        return WorkerId(self._selector.pick(candidates, self._in_flight))


def _encode(request: Any) -> bytes:
    try:
        return encode_payload(request)
    except OverflowError as error:  # JSON has larger integers than msgpack
        raise InvalidRequestError("the request holds an integer of more than 64 bits") from error


def _text_target(request: Mapping[str, Any]) -> WorkerId | None:
    """The worker that the client asks for; the request has been checked already."""
    nvext = request.get("nvext") or {}
    instance_id = nvext.get("backend_instance_id")
    return None if instance_id is None else WorkerId(instance_id, nvext.get("dp_rank") or 0)


class _StartError(Exception):
    """A worker gave no output, and the reason is none that would hold for another one."""

    def __init__(self, error: DynamoError) -> None:
        super().__init__(error.message)
        self.error = error


_decode_output = payload_decoder(LLMEngineOutput)
_decode_any = payload_decoder()
