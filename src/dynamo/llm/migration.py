"""The stage that goes on at another worker when one is lost in the middle of its answer.

The next worker gets the prompt and all that was generated, and makes the rest. Until a worker's first output the router
below tries one after the other by itself; here begins what only somebody can do who knows what was said.
"""

import asyncio
import logging
from collections.abc import Callable

from dynamo.errors import CannotResumeError, DynamoError, RequestCancelledError, UnavailableError
from dynamo.llm.continuation import Continuation
from dynamo.llm.migration_config import MigrationConfig
from dynamo.llm.patience import Patience
from dynamo.llm.stall_watch import StallWatch, watched
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, WorkerId
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver, Stage

logger = logging.getLogger(__name__)


class Migration:
    """A Stage, tokens for tokens, over the one that chooses a worker.

    A worker is lost when its answer breaks off with an error that another one may do better on, or when it says nothing
    for too long after it has begun. What it still sends then goes nowhere: its leg is over before the next begins.
    """

    def __init__(
        self,
        tokens: Stage[PreprocessedRequest, LLMEngineOutput],
        config: MigrationConfig,
        *,
        context_length: int | None = None,
        on_move: Callable[[], None] = lambda: None,
    ) -> None:
        """`context_length` of the model, in tokens; `on_move` is called whenever a request goes on elsewhere."""
        self._tokens = tokens
        self._config = config
        self._context_length = context_length
        self._on_move = on_move
        self._under_way = 0
        self._ended = asyncio.Event()

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self._under_way == 0

    async def until_idle(self) -> None:
        while self._under_way:
            self._ended.clear()
            await self._ended.wait()

    async def __call__(self, request: PreprocessedRequest, context: Context, deliver: Deliver[LLMEngineOutput]) -> None:
        self._under_way += 1
        try:
            await self._answer(Continuation(request, self._context_length), context, deliver)
        finally:
            self._under_way -= 1
            self._ended.set()

    async def _answer(self, sequence: Continuation, context: Context, deliver: Deliver[LLMEngineOutput]) -> None:
        patience = Patience(context, self._config.migration_wait_s)
        while True:
            leg = _Leg(sequence, context, deliver)
            failure = await self._run(leg, sequence, context)
            if failure is None or sequence.finished:
                return  # an error can only have hit the end of the stream, after all that was in it
            if context.is_stopped():
                raise RequestCancelledError("the request was cancelled") from failure
            if (end := sequence.end()) is not None:
                deliver(end)
                return
            if leg.worker is None:
                await patience.wait(failure, begun=sequence.begun)
                continue
            sequence.lost_by.append(leg.worker.instance_id)
            if len(sequence.lost_by) > self._config.migration_limit or sequence.pinned:
                logger.warning("request %s: given up, lost with %d workers", context.id(), len(sequence.lost_by))
                raise failure
            if sequence.within_grammar:
                raise CannotResumeError("the worker was lost within constrained output: ask anew") from failure
            self._move(sequence, leg.worker, failure, context)
            patience = Patience(context, self._config.migration_wait_s)

    async def _run(self, leg: "_Leg", sequence: Continuation, context: Context) -> DynamoError | None:
        """What has ended the leg, if another worker may do better; raises what else has."""
        request = sequence.request()
        try:
            async with watched(context, self._config.inter_token_timeout_s) as leg.watch:
                await self._tokens(request, context, leg.pass_on)
        except DynamoError as error:
            if leg.reader_failed or not error.retryable:
                raise
            sequence.lost_by = list(request.lost_by)  # with those that were lost before they had said anything
            return error
        return None

    def _move(self, sequence: Continuation, worker: WorkerId, failure: DynamoError, context: Context) -> None:
        logger.warning(
            "request %s: instance %x is lost after %d tokens, another one goes on: %s",
            context.id(),
            worker.instance_id,
            len(sequence.generated),
            failure,
        )
        self._on_move()


class _Leg:
    """One worker's part of a sequence: passes its outputs on. Runs for every token."""

    __slots__ = ("_context", "_deliver", "_sequence", "_take", "reader_failed", "watch", "worker")

    watch: StallWatch

    def __init__(self, sequence: Continuation, context: Context, deliver: Deliver[LLMEngineOutput]) -> None:
        self._sequence = sequence
        self._take = sequence.generated.extend
        self._context = context
        self._deliver = deliver
        self.worker: WorkerId | None = None  # whose leg it is, once there was an output
        self.reader_failed = False

    def pass_on(self, output: LLMEngineOutput) -> bool:
        if self.worker is None:
            self._begin(output)
        self._take(output.token_ids)
        self.watch.heard = True
        given_up = False
        if output.finish_reason is not None:
            given_up = self._finish(output)
        try:
            wanted = self._deliver(output)
        except BaseException:
            self.reader_failed = True  # which is no fault of the worker's, whatever the error says
            raise
        if not wanted:
            self._sequence.finished = True
        elif given_up:
            raise UnavailableError("the engine has given the request up")
        return wanted

    def _finish(self, output: LLMEngineOutput) -> bool:
        """Whether the engine ends the sequence for reasons of its own, which others need not have."""
        if output.finish_reason is FinishReason.CANCELLED and not self._context.is_stopped():
            output.finish_reason = None
            return True
        self._sequence.finished = True
        return False

    def _begin(self, output: LLMEngineOutput) -> None:
        """What belongs on a sequence's first output stays on that one."""
        self.worker = output.worker_id or _UNNAMED
        if self._sequence.begun:
            output.cached_tokens = output.worker_id = output.routing = output.disaggregation = None
            output.prompt_logprobs = None
        self._sequence.begun = True


_UNNAMED = WorkerId(0)  # in place of a worker whose router does not name it
