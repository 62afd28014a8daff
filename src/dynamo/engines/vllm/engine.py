"""VllmEngine: vLLM's AsyncLLM as an LLMEngine."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from vllm import SamplingParams
from vllm.config import VllmConfig as EngineConfig
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from dynamo.engines.base import EngineInfo, KvEventSink
from dynamo.engines.kvbm_follower import KvbmFollower
from dynamo.engines.vllm.engine_thread import EngineThread
from dynamo.engines.vllm.failures import DEATH, request_failure, translated
from dynamo.engines.vllm.handoffs import Handoffs, ReceivedHandoff, TransferParams
from dynamo.engines.vllm.info import engine_info
from dynamo.engines.vllm.kv_event_plane import KvEventPlane
from dynamo.engines.vllm.kv_transfer_stats import KvTransferRecorder
from dynamo.engines.vllm.kvbm_refusals import take_refusal
from dynamo.engines.vllm.kvbm_settings import settings_of
from dynamo.engines.vllm.outputs import engine_output
from dynamo.engines.vllm.resumed_penalties import RESUMED_TOKENS, count_resumed
from dynamo.engines.vllm.sampling import has_penalties, sampling_arguments, structured_output_arguments
from dynamo.engines.vllm.stats import LoadRecorder
from dynamo.errors import ConfigError, ContextLengthExceededError, InternalError, InvalidRequestError
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.context import Context
from dynamo.telemetry.kv_event_metrics import KvEventFigures
from dynamo.telemetry.kv_transfer_metrics import KvTransferMetrics

_HEALTH_INTERVAL_S = 0.2
_SHUTDOWN_GRACE_S = 2.0


class VllmEngine:
    """Tokens in, tokens out: text, chat templates and stop strings are the frontend's business."""

    def __init__(
        self, config: EngineConfig, handoffs: Handoffs | None = None, kvbm: KvbmFollower | None = None
    ) -> None:
        """`config` as dynamo.engines.vllm.args.parse_command_line makes it; without `handoffs` there are none.

        `kvbm`: of the block manager that its connector attaches to.
        """
        self._config = config
        count_resumed(config)
        self._handoffs = handoffs or Handoffs()
        self.kv_transfers = KvTransferMetrics(knows_held=False)
        self._kvbm = kvbm
        self._recorders: list[LoadRecorder] = []
        self._kv_events: KvEventPlane | None = None
        self._thread: EngineThread[AsyncLLM] = EngineThread(self._build, _shut_down)
        self._llm: AsyncLLM | None = None

    def publish_kv_events(self, sink: KvEventSink) -> bool:
        if self._kvbm is not None:
            sink = self._kvbm.tell(sink, self._config.parallel_config.data_parallel_size)
        plane = KvEventPlane(sink)
        if not plane.configure(self._config):
            return False
        self._kv_events = plane
        return True

    async def start(self) -> EngineInfo:
        """Raises InternalError when vLLM does not start; it has logged the reason then.

        ConfigError where that is that the block manager cannot serve this model.
        """
        try:
            self._llm = await self._thread.start()
            # The first call asks the engine process and remembers. From then on a request is registered before
            # generate() first waits, so that no abort can come too early to find it.
            await self._llm.get_supported_tasks()
        except Exception as error:
            refusal = take_refusal(settings_of(self._config.kv_transfer_config))
            if refusal is not None:
                raise ConfigError(refusal) from error
            raise InternalError(f"vLLM did not start: {error}") from error
        info = replace(
            engine_info(self._llm.vllm_config),
            handoff_format=self._handoffs.format,
            change_role=self._change_role if self._handoffs.changeable else None,
        )
        if self._kv_events is not None:
            assert info.limits.kv_block_size is not None
            self._kv_events.start(self._llm.get_kv_event_sources(), info.limits.kv_block_size)
        if self._kvbm is not None:
            self._kvbm.start()
        return info

    async def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        """Raises InvalidRequestError for what vLLM refuses, ConnectionLostError when its process dies.

        HandoffLostError, before any output, when a prefilled prompt's KV cache cannot be had.
        """
        handoff = self._handoffs.received(request)
        try:
            if context.is_stopped():
                await self._give_back(handoff, context)
                yield LLMEngineOutput(finish_reason=FinishReason.CANCELLED)
                return
            self._check_prompt(request)
            outputs = self._outputs(request, context, handoff)
            async with aclosing(outputs):
                async for output in outputs:
                    yield output
        except InvalidRequestError:
            await self._give_back(handoff, context)
            raise

    async def _outputs(
        self, request: PreprocessedRequest, context: Context, handoff: ReceivedHandoff | None
    ) -> AsyncGenerator[LLMEngineOutput, None]:
        first = True
        transfer = handoff.transfer if handoff is not None else self._handoffs.transfer_params(request)
        with translated(request):
            outputs = self._running().generate(
                tokens_input(request.token_ids.tolist(), cache_salt=request.cache_salt),
                _sampling_params(request, transfer),
                context.id(),
                data_parallel_rank=request.dp_rank,
            )
            async with aclosing(outputs):
                async for output in outputs:
                    result = engine_output(output, request, first=first)
                    if result.finish_reason is FinishReason.ERROR:
                        raise request_failure(request, first=first)
                    if first and handoff is not None and result.token_ids:
                        handoff.check()  # it was fetched before this, nobody says when
                    if request.prefill_only and output.kv_transfer_params:
                        result.handoff = self._handoffs.made(output.kv_transfer_params)
                    first = False
                    yield result

    async def abort(self, request_id: str) -> None:
        await self._running().abort(request_id)

    async def clear_device_cache(self) -> None:
        """Forgets the blocks on the device that no request uses. Tiers below it keep what they have."""
        if not await self._running().reset_prefix_cache():
            raise InternalError("vLLM keeps its cache while requests use it")

    def load(self) -> list[WorkerLoad]:
        return [recorder.load() for recorder in self._recorders]

    def kv_event_figures(self) -> dict[int, KvEventFigures]:
        """What has become of vLLM's KV events, by data-parallel rank; nothing where there are none."""
        return {} if self._kv_events is None else self._kv_events.figures()

    async def failed(self) -> str:
        """Returns the reason once the engine has died."""
        llm = self._running()
        while not llm.errored:  # noqa: ASYNC110 - vLLM tells nobody, it has to be asked
            await asyncio.sleep(_HEALTH_INTERVAL_S)
        return DEATH

    async def cleanup(self) -> None:
        try:
            if self._kvbm is not None:
                await self._kvbm.close()
            if self._kv_events is not None:
                await self._kv_events.close()
        finally:
            await self._thread.stop()
            self._llm = None

    async def _change_role(self, role: WorkerType) -> None:
        """See ChangeRole. vLLM is told with each request what to do; what it holds, it gives to who asks in time."""
        self._handoffs = self._handoffs.in_role(role)

    def _build(self) -> AsyncLLM:
        return AsyncLLM.from_vllm_config(
            self._config,
            stat_loggers=[self._make_recorder, KvTransferRecorder(self.kv_transfers).logger],
            disable_log_stats=True,  # only vLLM's own loggers
        )

    def _make_recorder(self, config: EngineConfig, engine_index: int = 0) -> LoadRecorder:
        recorder = LoadRecorder(config, engine_index)
        self._recorders.append(recorder)
        return recorder

    def _running(self) -> AsyncLLM:
        if self._llm is None:
            raise InternalError("vLLM is not running")
        return self._llm

    async def _give_back(self, handoff: ReceivedHandoff | None, context: Context) -> None:
        """Lets the prefill worker free what nobody will fetch."""
        llm = self._running()
        if handoff is not None and not llm.errored:
            await llm.notify_kv_transfer_request_rejected(f"{context.id()}-declined", handoff.transfer)

    def _check_prompt(self, request: PreprocessedRequest) -> None:
        """vLLM checks this too, but its error does not say which of the two mistakes it was."""
        length, limit = len(request.token_ids), self._running().model_config.max_model_len
        if length == 0:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        if length >= limit:
            raise ContextLengthExceededError(
                f"the prompt has {length} tokens, but the model's context holds {limit} tokens, output included",
                param="prompt",
            )


def _shut_down(llm: AsyncLLM) -> None:
    """Often takes the whole grace time: vLLM's processes need seconds to tear down what the kernel frees at once."""
    logging.getLogger("vllm").setLevel(logging.ERROR)  # it would warn of each process that it kills then
    llm.shutdown(timeout=_SHUTDOWN_GRACE_S)


def _sampling_params(request: PreprocessedRequest, transfer: TransferParams | None) -> SamplingParams:
    guided = request.guided_decoding
    extra_args: dict[str, Any] = {} if transfer is None else {"kv_transfer_params": transfer}
    if request.resumed_tokens and has_penalties(request):
        extra_args[RESUMED_TOKENS] = request.resumed_tokens
    return SamplingParams(
        **sampling_arguments(request),
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra_args or None,
        structured_outputs=StructuredOutputsParams(**structured_output_arguments(guided)) if guided else None,
    )
