"""The network edge of the request path: gets a worker for each request, sends it there, passes the reply on."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from dynamo.errors import (
    DynamoError,
    HandoffLostError,
    InvalidRequestError,
    NobodyLeftError,
    NoInstancesError,
    UnavailableError,
    UnreachableError,
)
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest, TextEngineOutput, WorkerId
from dynamo.protocols.routing import Prospect
from dynamo.router.placement import TARGET_FIELD, Placement, Placer
from dynamo.runtime.client import Client, ReplyStream
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver

OutputT = TypeVar("OutputT", LLMEngineOutput, TextEngineOutput)

logger = logging.getLogger(__name__)


class PushRouter:
    """Sends each request to one of the workers of a model, the one that `placer` chooses.

    A worker that refuses a request, or is lost before its first output, loses it to another one; after that its error
    is the answer (llm.migration knows how to go on).
    """

    def __init__(
        self,
        client: Client,
        placer: Placer,
        serves: Callable[[int], bool],
        fetches: Callable[[int], bool] = lambda _: False,
        *,
        lost_max: int = 3,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """`serves`: whether an instance of the endpoint belongs to the model (several models may share an endpoint).

        `fetches`: whether it can take a request with a handoff. `lost_max`: how many workers may be lost with a request
        and it goes to the next one still, as it may be what they die of: those in its `lost_by` count, to which the
        others are added. `on_lost` is called each time, also where it is the caller who goes on, without a handoff.
        """
        self._client = client
        self._placer = placer
        self._serves = serves
        self._fetches = fetches
        self._lost_max = lost_max
        self._on_lost = on_lost

    def workers(self) -> list[int]:
        """The instances that a request could go to now: those that just failed only if there are no others.

        Those that are stalled never.
        """
        return self._eligible(self._serves)

    def takes_handoffs(self, target: WorkerId | None = None) -> bool:
        """Whether there is a worker for a request with a handoff; or whether `target` is one."""
        return bool(self._eligible(self._fetches)) if target is None else self._fetches(target.instance_id)

    def check(self, request: PreprocessedRequest) -> None:
        """Raises what generate() would for who the request asks for, and where nobody is there."""
        self._placer.check(request.target)
        self._candidates(request.target, {}, self._serves, ())

    async def prospect(self, request: PreprocessedRequest, context: Context) -> Prospect | None:
        """What the request would find where it would go now; None where that is not known, or nobody is there."""
        candidates = self.workers() if request.target is None else [request.target.instance_id]
        return await self._placer.prospect(request, context, candidates) if candidates else None

    async def generate(self, request: PreprocessedRequest, context: Context, deliver: Deliver[LLMEngineOutput]) -> None:
        """A Stage: tokens for tokens."""
        await self._route(request, request, context, request.target, _decode_output, deliver)

    async def generate_text(
        self, request: dict[str, Any], context: Context, deliver: Deliver[TextEngineOutput]
    ) -> None:
        """A Stage: the OpenAI request for OpenAI chunks, for workers that take text."""
        await self._route(request, None, context, _text_target(request), _decode_chunk, deliver)

    async def _route(
        self,
        request: Any,
        tokens: PreprocessedRequest | None,
        context: Context,
        target: WorkerId | None,
        decode: Callable[[Any], OutputT],
        deliver: Deliver[OutputT],
    ) -> None:
        """Passes on the answer of the first worker that answers at all."""
        failed: dict[int, DynamoError] = {}
        has_handoff = tokens is not None and tokens.handoff is not None
        eligible = self._fetches if has_handoff else self._serves
        lost_by = [] if tokens is None else tokens.lost_by
        while True:
            placement = await self._placed(
                tokens, context, target, lambda: self._candidates(target, failed, eligible, lost_by)
            )
            answer = _Answer(placement.worker, placement.watched(deliver))
            try:
                await self._send(placement, request, context, decode, answer.pass_on)
                return
            except DynamoError as error:
                if target is not None or answer.begun or not error.retryable:
                    raise
                if isinstance(error, HandoffLostError):
                    raise  # the worker is well, and a handoff is good for one try
                instance_id = placement.worker.instance_id
                self._client.avoid(instance_id)
                if not _is_refusal(error):
                    lost_by.append(instance_id)
                    if len(lost_by) > self._lost_max:
                        logger.warning("request %s: given up, lost with %d workers", context.id(), len(lost_by))
                        raise
                    self._on_lost()
                    if has_handoff:
                        raise  # who has refused one has not tried it
                logger.warning("request %s: instance %x: %s", context.id(), instance_id, error)
                failed[instance_id] = error
            finally:
                placement.end()

    async def _placed(
        self,
        tokens: PreprocessedRequest | None,
        context: Context,
        target: WorkerId | None,
        candidates: Callable[[], Sequence[int]],
    ) -> Placement:
        """With one of those that there are, also if all are gone while the request waits, and others have come."""
        while True:
            known = candidates()
            try:
                return await self._placer.place(tokens, context, known, target)
            except NoInstancesError:
                if set(candidates()) <= set(known):
                    raise

    async def _send(
        self,
        placement: Placement,
        request: Any,
        context: Context,
        decode: Callable[[Any], OutputT],
        deliver: Deliver[OutputT],
    ) -> None:
        instance_id = placement.worker.instance_id
        reply = await self._client.call(instance_id, _encode(request, placement.dp_rank), context)
        await ReplyStream(reply, decode, instance_id).push_to(deliver)

    def _candidates(
        self,
        target: WorkerId | None,
        failed: Mapping[int, DynamoError],
        eligible: Callable[[int], bool],
        lost_by: Collection[int],
    ) -> Sequence[int]:
        if target is not None:
            if target.instance_id not in self._client.instance_ids() or not self._serves(target.instance_id):
                raise InvalidRequestError(f"there is no worker {target.instance_id} for this model", param=TARGET_FIELD)
            return [target.instance_id]
        candidates = [i for i in self._eligible(eligible) if i not in failed]
        if not candidates:
            raise _nobody(failed.values())
        return [i for i in candidates if i not in lost_by] or candidates

    def _eligible(self, eligible: Callable[[int], bool]) -> list[int]:
        workers = [i for i in self._client.instance_ids() if eligible(i)]
        available = set(self._client.available_ids())
        return [i for i in workers if i in available] or [i for i in workers if not self._client.is_stalled(i)]


def _is_refusal(error: DynamoError) -> bool:
    """Whether the worker has not begun with the request."""
    return isinstance(error, UnavailableError | UnreachableError)


def _nobody(failures: Collection[DynamoError]) -> DynamoError:
    """Why no worker has taken the request, by what each of those that were tried has failed with."""
    if not all(map(_is_refusal, failures)):
        return NobodyLeftError("the worker that had this request is lost, and no other can take it right now")
    # What the last one said of its state says more than that a connection failed.
    said = [error for error in failures if isinstance(error, UnavailableError)]
    return said[-1] if said else NoInstancesError("no worker can take this request right now")


def _encode(request: Any, dp_rank: int | None) -> bytes:
    if dp_rank is not None:
        request = msgspec.structs.replace(request, dp_rank=dp_rank)
    try:
        return encode_payload(request)
    except OverflowError as error:  # JSON has larger integers than msgpack
        raise InvalidRequestError("the request holds an integer of more than 64 bits") from error


def _text_target(request: Mapping[str, Any]) -> WorkerId | None:
    """The worker that the client asks for; the request has been checked already."""
    nvext = request.get("nvext") or {}
    instance_id = nvext.get("backend_instance_id")
    return None if instance_id is None else WorkerId(instance_id, nvext.get("dp_rank") or 0)


class _Answer:
    """Hands a worker's outputs on, the first with its name."""

    __slots__ = ("_deliver", "_worker", "begun")

    def __init__(self, worker: WorkerId, deliver: Deliver[Any]) -> None:
        self._worker = worker
        self._deliver = deliver
        self.begun = False

    def pass_on(self, output: LLMEngineOutput | TextEngineOutput) -> bool:
        if not self.begun:
            self.begun = True
            output.worker_id = self._worker
        return self._deliver(output)


_decode_output = payload_decoder(LLMEngineOutput)
_decode_any = payload_decoder()


def _decode_chunk(payload: Any) -> TextEngineOutput:
    return TextEngineOutput(_decode_any(payload))
