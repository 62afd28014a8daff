"""Makes vLLM publish its KV events where we can hear them, and listens."""

import asyncio
import logging
import tempfile
from collections.abc import Mapping

import zmq.asyncio
from vllm.config import VllmConfig as EngineConfig
from vllm.config.kv_events import KVEventsConfig

from dynamo.engines.base import KvEventSink
from dynamo.engines.vllm.kv_event_source import KvEventSource
from dynamo.engines.vllm.kv_events import KvEventTranslator
from dynamo.telemetry.kv_event_metrics import KvEventFigures

logger = logging.getLogger(__name__)


class KvEventPlane:
    """The events of all data-parallel ranks of one vLLM.

    Those who follow them believe that what they have heard is all that the cache holds. So `sink` is closed as soon as
    one of the ranks is not heard any more.
    """

    def __init__(self, sink: KvEventSink) -> None:
        self._sink = sink
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._context: zmq.asyncio.Context | None = None
        self._sources: dict[int, KvEventSource] = {}  # by data-parallel rank
        self._tasks: list[asyncio.Task[None]] = []

    def configure(self, config: EngineConfig) -> bool:
        """Turns vLLM's events on, before it starts, unless the user has decided about them.

        False when there will be none for us: without prefix caching, or because the user has turned them off or wants
        vLLM to connect to somebody.
        """
        if not config.cache_config.enable_prefix_caching:
            return False
        if config.kv_events_config is None:
            self._directory = tempfile.TemporaryDirectory(prefix="dynamo-kv-events-")  # nobody else may enter it
            # vLLM gives each data-parallel rank an address of its own, but does that for tcp and inproc only, by
            # looking for these words anywhere in the address.
            address = f"ipc://{self._directory.name}/inproc"
            config.kv_events_config = KVEventsConfig(
                enable_kv_cache_events=True,
                publisher="zmq",
                endpoint=f"{address}-events",
                replay_endpoint=f"{address}-replay",
            )
        events = config.kv_events_config
        if not (events.enable_kv_cache_events and events.publisher == "zmq" and _is_bound(events.endpoint)):
            return False
        _name_all_offloaded_blocks(config)
        return True

    def start(self, sources: Mapping[int, KVEventsConfig], block_size: int) -> None:
        """Listens to a started vLLM: `sources` by rank, as AsyncLLM.get_kv_event_sources() gives them."""
        if not sources:
            logger.error("vLLM does not say where it publishes its KV events")
            self._sink.close()
        self._context = zmq.asyncio.Context()
        for dp_rank, config in sources.items():
            source = KvEventSource(
                self._context,
                KvEventTranslator(dp_rank, block_size),
                self._sink.publish,
                endpoint=_reachable(config.endpoint),
                replay_endpoint=_reachable(config.replay_endpoint) if config.replay_endpoint else None,
                topic=config.topic,
            )
            self._sources[dp_rank] = source
            self._tasks.append(asyncio.create_task(source.run(), name=f"vllm-kv-events-{dp_rank}"))
            self._tasks[-1].add_done_callback(self._ended)

    def figures(self) -> dict[int, KvEventFigures]:
        """What has become of the events so far, by rank; nothing while it does not listen."""
        return {dp_rank: source.figures() for dp_rank, source in self._sources.items()}

    async def close(self) -> None:
        """Idempotent; also for one that was never started."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for source in self._sources.values():
            source.close()
        self._tasks, self._sources = [], {}
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            logger.error("vLLM's KV events are not heard any more", exc_info=task.exception())
            self._sink.close()


def _name_all_offloaded_blocks(config: EngineConfig) -> None:
    """By itself vLLM names the last block of each chunk that it offloads, and those before it are missed."""
    transfer = config.kv_transfer_config
    if transfer is not None and transfer.kv_connector == "OffloadingConnector":
        transfer.kv_connector_extra_config.setdefault("self_describing_kv_events", True)


def _is_bound(address: str) -> bool:
    """Whether vLLM binds the address; else it connects to it."""
    return "*" in address or "::" in address or address.startswith("ipc://")


def _reachable(address: str) -> str:
    """Where to connect to what vLLM has bound, on this machine, to `address`."""
    return address.replace("*", "127.0.0.1").replace("[::]", "[::1]")
