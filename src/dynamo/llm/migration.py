"""The stage that goes on at another worker when one is lost in the middle of its answer.

The next worker gets the prompt and all that was generated, and makes the rest. Until a worker's first output the router
below tries one after the other by itself; here begins what only somebody can do who knows what was said.
"""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from dynamo.errors import (
    CannotResumeError,
    DeadlineExceededError,
    DynamoError,
    NobodyLeftError,
    RequestCancelledError,
    UnavailableError,
)
from dynamo.llm.continuation import Continuation
from dynamo.llm.migration_config import MigrationConfig
from dynamo.llm.stall_watch import StallWatch, watched
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, WorkerId
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver, Stage

logger = logging.getLogger(__name__)

_PAUSE_MIN_S = 0.05  # between two attempts to find a worker; doubled each time
_PAUSE_MAX_S = 1.0


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
        moves_left, patience = self._config.migration_limit, _Patience(context, self._config.migration_wait_s)
        while True:
            leg = _Leg(sequence, context, deliver)
            failure = await self._run(leg, sequence, context)
            if failure is None or sequence.finished:
                return  # the error can only have hit the end of the stream, after all that was in it
            if context.is_stopped():
                raise RequestCancelledError("the request was cancelled") from failure
            if (end := sequence.end()) is not None:
                deliver(end)
                return
            if leg.worker is None:
                await patience.wait(sequence, failure)
                continue
            if not moves_left or sequence.pinned:
                raise failure
            if sequence.within_grammar:
                raise CannotResumeError("the worker was lost within constrained output: ask anew") from failure
            moves_left -= 1
            self._move(sequence, leg.worker, failure, context)
            patience = _Patience(context, self._config.migration_wait_s)

    async def _run(self, leg: "_Leg", sequence: Continuation, context: Context) -> DynamoError | None:
        """What has ended the leg, if another worker may do better; raises what else has."""
        try:
            async with watched(context, self._config.inter_token_timeout_s) as leg.watch:
                await self._tokens(sequence.request(), context, leg.pass_on)
        except DynamoError as error:
            if leg.reader_failed or not error.retryable:
                raise
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
        sequence.lost_by(worker.instance_id)
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
        self.watch.last_s = monotonic()
        given_up = False
        if output.finish_reason is not None:
            given_up = self._finish(output)
        try:
            wanted = self._deliver(output)
        except BaseException:
            self.reader_failed = True  # which is no fault of the worker's, whatever the error says
            raise
        if given_up and wanted:
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


class _Patience:
    """How long a request that has lost its worker looks for another one."""

    def __init__(self, context: Context, wait_s: float) -> None:
        self._context = context
        self._wait_s = wait_s
        self._give_up_s: float | None = None
        self._pause_s = _PAUSE_MIN_S

    async def wait(self, sequence: Continuation, failure: DynamoError) -> None:
        """Returns when it is time to try again; raises `failure` where there is no point in that.

        A request that no worker has begun with yet does not wait: its client is told at once.
        """
        now_s = monotonic()
        waits = self._give_up_s is not None or sequence.begun or isinstance(failure, NobodyLeftError)
        if not waits or not isinstance(failure, UnavailableError):
            raise failure
        if self._give_up_s is None:
            self._give_up_s = now_s + self._wait_s
        if now_s >= self._give_up_s:
            raise failure
        await self._pause(min(self._pause_s, self._give_up_s - now_s))
        self._pause_s = min(self._pause_s * 2, _PAUSE_MAX_S)

    async def _pause(self, pause_s: float) -> None:
        remaining_s = self._context.remaining_s()
        in_time = remaining_s is None or remaining_s > pause_s
        try:
            async with asyncio.timeout(pause_s if in_time else remaining_s):
                await self._context.async_killed_or_stopped()
        except TimeoutError:
            if not in_time:
                raise DeadlineExceededError("the deadline passed while the request looked for a worker") from None
        else:
            raise RequestCancelledError("the request was cancelled")


_UNNAMED = WorkerId(0)  # in place of a worker whose router does not name it
