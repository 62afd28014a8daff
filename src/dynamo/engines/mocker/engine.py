"""The simulated engine in real time: a task steps the scheduler and hands each step's outputs to the requests."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from dynamo.engines.base import EngineInfo, KvEventSink
from dynamo.engines.mocker.args import MockerConfig
from dynamo.engines.mocker.cache_events import CacheEvents
from dynamo.engines.mocker.handoff_config import HandoffConfig
from dynamo.engines.mocker.kv_port import KvPort
from dynamo.engines.mocker.mailbox import Mailbox
from dynamo.engines.mocker.pacing import Pacer, whole_ticks
from dynamo.engines.mocker.role import Role
from dynamo.engines.mocker.roles import make_role
from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.scheduler import Scheduler
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.engines.mocker.vocabulary import load_vocabulary
from dynamo.errors import ConfigError, ConnectionLostError, DynamoError, UnavailableError
from dynamo.llm.model_source import resolve_model
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.kv_events import KvEventBatch
from dynamo.protocols.kvbm import PoolFigures
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import RuntimeLimits, WorkerType
from dynamo.runtime.context import Context
from dynamo.telemetry.kv_transfer_metrics import KvTransferMetrics

logger = logging.getLogger(__name__)


def create_engine(config: MockerConfig) -> "MockerEngine":
    """The engine that `config` describes, --num-workers aside. Reads the tokenizer, which takes half a second.

    Raises ConfigError when the model or a setting can't be used.
    """
    return _create(config, num_engines=1)[0]


def create_engines(config: MockerConfig) -> list["MockerEngine"]:
    """As many as --num-workers says, which share their metrics; as create_engine() otherwise."""
    if config.num_workers < 1:
        raise ConfigError(f"--num-workers must be at least 1, not {config.num_workers}")
    return _create(config, num_engines=config.num_workers)


def _create(config: MockerConfig, *, num_engines: int) -> list["MockerEngine"]:
    handoffs, metrics = config.handoff_config(num_engines), KvTransferMetrics()
    model_dir = resolve_model(config.model_path, weights=False)
    scheduler_config, timing = config.scheduler_config(model_dir), config.timing_model()
    tiers = config.tiers_config()
    sampler = Sampler(load_vocabulary(model_dir), config.seed)
    return [
        MockerEngine(
            Scheduler(scheduler_config, timing, sampler, tiers=tiers),
            startup_time_s=config.startup_time_s,
            handoffs=handoffs,
            metrics=metrics,
        )
        for _ in range(num_engines)
    ]


class MockerEngine:
    """An LLMEngine without a model: real scheduling, simulated time, words without sense."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        pacer: Pacer | None = None,
        startup_time_s: float = 0.0,
        handoffs: HandoffConfig | None = None,
        metrics: KvTransferMetrics | None = None,
    ) -> None:
        """`pacer`: how time passes; `startup_time_s`: how long start() pretends to load a model.

        `handoffs`: the engine's first role, aggregated by default; `metrics`: of its transfers.
        """
        self.metrics = metrics or KvTransferMetrics()
        self._scheduler = scheduler
        self._pacer = pacer or Pacer()
        self._startup_time_s = startup_time_s
        self._mailboxes: dict[SequenceState, Mailbox] = {}
        self._cache_events = CacheEvents()
        self._kv_events: KvEventSink | None = None
        self._arrival = asyncio.Event()
        self._handoffs = handoffs or HandoffConfig()
        self._port = KvPort.of(self._handoffs, scheduler.config)
        self._role = self._make_role(self._handoffs.role)
        self._stepping: asyncio.Task[None] | None = None
        self._stopped: type[DynamoError] | None = None  # why nothing is served any more
        self._failed = asyncio.Event()

    def publish_kv_events(self, sink: KvEventSink) -> bool:
        if not self._scheduler.config.enable_prefix_caching:
            return False
        self._scheduler.tell(self._cache_events)
        self._kv_events = sink
        return True

    async def start(self) -> EngineInfo:
        disaggregated = self._handoffs.role is not WorkerType.Aggregated
        if disaggregated:
            await self._port.start()
        self._role.start()
        await asyncio.sleep(self._startup_time_s)
        self._stepping = asyncio.create_task(self._run(), name="mocker steps")
        self._stepping.add_done_callback(self._stepping_ended)
        config = self._scheduler.config
        return EngineInfo(
            context_length=config.context_length,
            limits=RuntimeLimits(
                kv_block_size=config.block_size,
                total_kv_blocks=config.num_blocks,
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
            ),
            handoff_format=self._handoffs.format(config.block_size),
            change_role=self._change_role if disaggregated else None,
        )

    async def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        """Yields one output per step, or per several steps to a slow consumer.

        After the output with a handoff it ends when the KV cache has been fetched or is gone: as long as it is open,
        somebody may still come for it.

        Raises InvalidRequestError for what can never be served, or not by a worker of this role, OverloadedError when
        too many requests wait, HandoffLostError when the request's handoff leads nowhere, UnavailableError once the
        engine was stopped and ConnectionLostError once it has failed.
        """
        if self._stopped is not None:
            raise self._stopped(_STOPPED)
        self._role.check(request)
        sequence = self._scheduler.add(request)
        mailbox = self._mailboxes[sequence] = Mailbox(context.id())
        self._role.added(sequence, request)
        self._arrival.set()
        try:
            finished = False
            while not finished:
                output = mailbox.take() or await mailbox.arrival()
                finished = output.finish_reason is not None
                yield output
            await self._role.over(sequence)
        finally:
            self._mailboxes.pop(sequence, None)
            self._role.give_up(sequence)

    async def abort(self, request_id: str) -> None:
        for sequence, mailbox in tuple(self._mailboxes.items()):
            if mailbox.request_id == request_id:
                del self._mailboxes[sequence]
                self._role.give_up(sequence)
                mailbox.put(LLMEngineOutput(finish_reason=FinishReason.CANCELLED))

    def load(self) -> list[WorkerLoad]:
        return [self._scheduler.load()]

    def pool_figures(self, number: int) -> PoolFigures | None:
        """What its tiers hold and have done, as worker `number` of its process; None where it has none."""
        tiers = self._scheduler.tiers
        return None if tiers is None else tiers.figures(number)

    async def failed(self) -> str:
        await self._failed.wait()
        return _STOPPED

    async def cleanup(self) -> None:
        if self._stepping is not None:
            self._stepping.cancel()
            await asyncio.wait([self._stepping])
        self._stop(UnavailableError)
        await self._role.close()
        await self._port.close()

    def _make_role(self, role: WorkerType) -> Role:
        return make_role(
            role,
            self._port,
            self._handoffs.lease_s,
            self._scheduler,
            self._mailboxes,
            self._arrival.set,
            self.metrics,
        )

    async def _change_role(self, role: WorkerType) -> None:
        """See ChangeRole. What a prefill worker holds is fetched before, or its time is up."""
        await self._role.vacate()
        await self._role.close()
        self._role = self._make_role(role)
        self._role.start()

    async def _run(self) -> None:
        scheduler, pacer = self._scheduler, self._pacer
        pacer.restart()
        while True:
            scheduler.advance(time.monotonic())
            if not scheduler.has_work:
                await self._wait_for_work()
                pacer.restart()
            step = scheduler.step()
            role = self._role  # of this step: another one comes when there is nothing to do
            role.step_began(step)
            await pacer.step(step.duration_s)
            self._publish_events()
            role.step_ended(step)
            for sequence, output in step.outputs.items():
                mailbox = self._mailboxes.get(sequence)  # None: given up while the step lasted
                if mailbox is not None:
                    mailbox.put(output)

    def _publish_events(self) -> None:
        """What the step has done to the cache is known before its outputs are."""
        if self._kv_events is not None and (events := self._cache_events.take()):
            self._kv_events.publish(KvEventBatch(0, events))

    async def _wait_for_work(self) -> None:
        while not self._scheduler.has_work:
            self._publish_events()
            self._arrival.clear()
            await self._arrival_until(self._scheduler.next_s)
            self._scheduler.advance(time.monotonic())

    async def _arrival_until(self, time_s: float | None) -> None:
        """Returns then, or at an arrival."""
        if time_s is None:
            await self._arrival.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(whole_ticks(time_s - time.monotonic())):
                await self._arrival.wait()

    def _stepping_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            logger.error("the simulated engine has failed", exc_info=task.exception())
            self._stop(ConnectionLostError)  # others can do what it cannot
            self._failed.set()

    def _stop(self, reason: type[DynamoError]) -> None:
        """Nothing is served from now on; those who wait are told."""
        self._stopped = self._stopped or reason
        for mailbox in self._mailboxes.values():
            mailbox.fail(self._stopped(_STOPPED))


_STOPPED = "the simulated engine has stopped"
