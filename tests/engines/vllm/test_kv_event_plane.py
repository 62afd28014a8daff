"""Whether vLLM publishes its KV events, and where. With a running vLLM: test_engine.py."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import pytest

from dynamo.engines.vllm.args import parse_command_line
from dynamo.testing import eventually
from dynamo.testing.kv_event_log import KvEventLog

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # importing vLLM and torch warns a lot


def transfer(connector: str, **extra: object) -> str:
    return json.dumps({"kv_connector": connector, "kv_role": "kv_both", "kv_connector_extra_config": extra})


@pytest.fixture(autouse=True)
async def _environment() -> AsyncIterator[None]:
    """Reading its configuration, vLLM writes to the environment."""
    with mock.patch.dict(os.environ):
        yield


async def test_turned_on_by_themselves(smollm2_dir: Path) -> None:
    """On sockets that nobody else can reach, and that are gone afterwards."""
    _, config = parse_command_line(["--model", str(smollm2_dir)])
    from vllm.distributed.kv_events import ZmqEventPublisher

    from dynamo.engines.vllm.kv_event_plane import KvEventPlane

    plane = KvEventPlane(KvEventLog())
    assert plane.configure(config)
    events = config.kv_events_config
    assert events.enable_kv_cache_events
    addresses = [events.endpoint, events.replay_endpoint]
    directory = Path(events.endpoint.removeprefix("ipc://")).parent
    assert directory.stat().st_mode & 0o777 == 0o700
    for rank in (1, 2):
        addresses += [ZmqEventPublisher.offset_endpoint_port(address, rank) for address in addresses[:2]]
    assert len(set(addresses)) == 6
    assert all(address.startswith(f"ipc://{directory}/") for address in addresses)
    await plane.close()
    assert not directory.exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--no-enable-prefix-caching"], False),
        (["--kv-events-config", '{"enable_kv_cache_events": false}'], False),
        (["--kv-events-config", '{"enable_kv_cache_events": true, "publisher": "null"}'], False),
        (["--kv-events-config", '{"enable_kv_cache_events": true, "endpoint": "tcp://*:5999"}'], True),
        (["--kv-events-config", '{"enable_kv_cache_events": true, "endpoint": "tcp://collector:5999"}'], False),
    ],
)
async def test_what_the_user_has_decided_stays(flags: list[str], expected: bool, smollm2_dir: Path) -> None:
    _, config = parse_command_line(["--model", str(smollm2_dir), *flags])
    from dynamo.engines.vllm.kv_event_plane import KvEventPlane

    before = config.kv_events_config
    plane = KvEventPlane(KvEventLog())
    assert plane.configure(config) is expected
    assert config.kv_events_config is before
    await plane.close()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--kv-offloading-size", "1"], True),
        (["--kv-transfer-config", transfer("OffloadingConnector", blocks_per_chunk=4)], True),
        (["--kv-transfer-config", transfer("OffloadingConnector", self_describing_kv_events=False)], False),
        (["--kv-transfer-config", transfer("ExampleConnector")], None),
        (["--kv-offloading-size", "1", "--kv-events-config", '{"enable_kv_cache_events": false}'], None),
    ],
)
async def test_offloaded_blocks_are_all_named(flags: list[str], expected: bool | None, smollm2_dir: Path) -> None:
    _, config = parse_command_line(["--model", str(smollm2_dir), *flags])
    from dynamo.engines.vllm.kv_event_plane import KvEventPlane

    plane = KvEventPlane(KvEventLog())
    plane.configure(config)
    assert config.kv_transfer_config.kv_connector_extra_config.get("self_describing_kv_events") is expected
    await plane.close()


async def test_nobody_relies_on_events_that_are_not_heard_any_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    from vllm.config.kv_events import KVEventsConfig

    from dynamo.engines.vllm.kv_event_plane import KvEventPlane
    from dynamo.engines.vllm.kv_event_source import KvEventSource

    broken = asyncio.Event()

    async def run(self: KvEventSource) -> None:
        await broken.wait()
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(KvEventSource, "run", run)
    log, never_broken = KvEventLog(), KvEventLog()
    planes = [KvEventPlane(log), KvEventPlane(never_broken)]
    for plane in planes:
        assert plane.figures() == {}
        plane.start({rank: KVEventsConfig(endpoint=f"ipc://{tmp_path}/events-{rank}") for rank in (0, 2)}, 16)
        assert plane.figures().keys() == {0, 2}
    await planes[1].close()
    assert not log.closed
    broken.set()
    await eventually(lambda: log.closed)
    assert "vLLM's KV events are not heard any more" in caplog.text
    assert not never_broken.closed
    await planes[0].close()


async def test_nobody_relies_on_events_that_vllm_does_not_publish() -> None:
    from dynamo.engines.vllm.kv_event_plane import KvEventPlane

    log = KvEventLog()
    plane = KvEventPlane(log)
    plane.start({}, 16)
    assert log.closed
    await plane.close()


@pytest.mark.parametrize(
    ("bound", "reachable"),
    [
        ("tcp://*:5557", "tcp://127.0.0.1:5557"),
        ("tcp://[::]:5557", "tcp://[::1]:5557"),
        ("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5557"),
        ("ipc:///tmp/x", "ipc:///tmp/x"),
    ],
)
def test_where_to_connect(bound: str, reachable: str) -> None:
    from dynamo.engines.vllm.kv_event_plane import _reachable

    assert _reachable(bound) == reachable
