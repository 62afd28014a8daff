"""What only etcd can do to a process: be away, lose a lease or its data, forget the past."""

import asyncio
import base64
import json
import logging
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from dynamo.errors import ConfigError
from dynamo.runtime.discovery.base import Delete, Put
from dynamo.testing import eventually, program, within
from dynamo.testing.discovery import follow
from dynamo.testing.etcd_server import EtcdServer

from .conftest import MakeEtcd

OWNER = """
import asyncio, sys
from dynamo.runtime.discovery.etcd import EtcdDiscovery
from dynamo.runtime.discovery.etcd_config import EtcdConfig

async def main():
    discovery = EtcdDiscovery(EtcdConfig(endpoints=sys.argv[1], lease_ttl_s=2), root=sys.argv[2])
    await discovery.register("k", b"v")
    print("registered", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
UNREACHABLE = "http://127.0.0.1:1"


def ask(server: EtcdServer, path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Another client's call."""
    body = json.dumps(request).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}{path}", body), timeout=10) as answer:
        decoded: dict[str, Any] = json.load(answer)
        return decoded


def keys_of(server: EtcdServer, root: str) -> dict[str, str]:
    """What stands there, and under which lease."""
    request = {"key": encoded(root), "range_end": encoded(root[:-1] + chr(ord(root[-1]) + 1))}
    found = ask(server, "/v3/kv/range", request).get("kvs", [])
    return {base64.b64decode(kv["key"]).decode().removeprefix(root): kv.get("lease", "") for kv in found}


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def restart(server: EtcdServer, *, with_data: bool = True) -> None:
    server.stop()
    if not with_data:
        server.lose_data()
    await asyncio.to_thread(server.start)


async def test_all_entries_of_a_process_stand_under_one_lease(etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    owner, neighbour = make(etcd), make(etcd)
    for key in ("a", "b", "c"):
        await owner.register(key, b"v")
    await neighbour.register("d", b"v")
    leases = keys_of(etcd, root)
    assert len({leases[key] for key in "abc"}) == 1
    assert leases["d"] not in {"", leases["a"]}
    await owner.close()
    assert keys_of(etcd, root) == {"d": leases["d"]}


async def test_killed_process_is_forgotten_when_its_lease_ends(etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    watch = make(etcd).watch("")
    async with program(["-c", OWNER, etcd.url, root]) as owner:
        await follow(watch, {"k": b"v"})
        owner.signal(signal.SIGKILL)
        assert await within(anext(watch)) == Delete("k")


@pytest.mark.alone
async def test_lease_is_kept_alive(etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    """Time has to pass, twice the lease's."""
    watch = make(etcd).watch("")
    await make(etcd, lease_ttl_s=2).register("k", b"v")
    await follow(watch, {"k": b"v"})
    with pytest.raises(TimeoutError):
        await within(anext(watch), 4)


async def test_stopped_process_registers_anew_when_it_continues(etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    watch = make(etcd).watch("")
    async with program(["-c", OWNER, etcd.url, root]) as owner:
        await follow(watch, {"k": b"v"})
        owner.signal(signal.SIGSTOP)
        assert await within(anext(watch)) == Delete("k")
        owner.signal(signal.SIGCONT)
        assert await within(anext(watch)) == Put("k", b"v")


async def test_lease_revoked_by_somebody(etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    owner, watch = make(etcd), make(etcd).watch("")
    first = await owner.register("a", b"1")
    await owner.register("b", b"2")
    await follow(watch, {"a": b"1", "b": b"2"})
    lease = keys_of(etcd, root)["a"]
    await asyncio.to_thread(ask, etcd, "/v3/lease/revoke", {"ID": lease})
    view = {"a": b"1", "b": b"2"}
    await follow(watch, {}, view=view)
    await follow(watch, {"a": b"1", "b": b"2"}, view=view)
    assert lease not in keys_of(etcd, root).values()
    await owner.register("c", b"3")
    await first.withdraw()
    assert keys_of(etcd, root).keys() == {"b", "c"}


async def test_keys_taken_over_after_a_lost_lease(
    etcd: EtcdServer, root: str, make: MakeEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    owner = make(etcd)
    await owner.register("a", b"mine")
    withdrawn = await owner.register("b", b"mine")
    lease = keys_of(etcd, root)["a"]
    for key in "ab":  # etcd lets others write over it, which takes it out of the lease
        ask(etcd, "/v3/kv/put", {"key": encoded(f"{root}{key}"), "value": encoded("stolen")})
    ask(etcd, "/v3/lease/revoke", {"ID": lease})
    await eventually(lambda: caplog.text.count("another one has its key") == 2)
    await withdrawn.withdraw()
    watch = make(etcd).watch("")
    view: dict[str, bytes] = {}
    await follow(watch, {"a": b"stolen", "b": b"stolen"}, view=view)
    ask(etcd, "/v3/kv/deleterange", {"key": encoded(f"{root}a")})
    await follow(watch, {"a": b"mine", "b": b"stolen"}, view=view)
    assert caplog.text.count("another one has its key") == 2


async def test_restart_of_etcd_loses_nothing(own_etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    owner, other = make(own_etcd), make(own_etcd)
    watch = other.watch("")
    await owner.register("a", b"1")
    view: dict[str, bytes] = {}
    await follow(watch, {"a": b"1"}, view=view)
    await restart(own_etcd)
    await owner.register("b", b"2")
    assert await within(anext(watch)) == Put("b", b"2")  # and no word of a
    assert keys_of(own_etcd, root).keys() == {"a", "b"}


async def test_etcd_that_has_lost_its_data_is_told_anew(
    own_etcd: EtcdServer, root: str, make: MakeEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    owner, watch = make(own_etcd), make(own_etcd).watch("")
    gone = make(own_etcd)
    for turn in range(5):  # so that etcd's revision is far beyond what it will be afterwards
        await (await owner.register(f"{turn}", b"")).withdraw()
    await owner.register("a", b"1")
    await gone.register("gone", b"2")
    await follow(watch, {"a": b"1", "gone": b"2"})
    await gone._entries.close()  # as if it was killed
    assert await within(anext(watch)) == Delete("gone")
    own_etcd.stop()
    await restart(own_etcd, with_data=False)
    await eventually(lambda: keys_of(own_etcd, root).keys() == {"a"})
    await owner.register("b", b"3")
    assert await within(anext(watch)) == Put("b", b"3")  # a was never away
    assert "forgetting nobody" in caplog.text


async def test_owner_that_died_with_etcds_data_is_forgotten(own_etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    watch = make(own_etcd).watch("")
    survivor = make(own_etcd)
    for turn in range(5):
        await (await survivor.register(f"{turn}", b"")).withdraw()
    await survivor.register("a", b"1")
    async with program(["-c", OWNER, own_etcd.url, root]) as owner:
        await follow(watch, {"a": b"1", "k": b"v"})
        own_etcd.stop()
        owner.signal(signal.SIGKILL)
        await owner.exit_code()
    await restart(own_etcd, with_data=False)
    assert await within(anext(watch)) == Delete("k")
    assert watch.take() == []


async def test_nothing_is_forgotten_while_etcd_is_away(
    own_etcd: EtcdServer, root: str, make: MakeEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    owner = make(own_etcd, register_timeout_s=1.5)
    other = make(own_etcd)
    watch = other.watch("")
    kept = await owner.register("kept", b"1")
    withdrawn = await owner.register("withdrawn", b"2")
    await follow(watch, {"kept": b"1", "withdrawn": b"2"})
    own_etcd.stop()
    with pytest.raises(ConfigError, match="cannot be registered in etcd"):
        await owner.register("late", b"3")
    await within(withdrawn.withdraw())
    await eventually(lambda: "trying again" in caplog.text)
    assert sorted(event.key for event in other.watch("").take()) == ["kept", "withdrawn"]  # for new watchers too
    assert watch.take() == []
    await asyncio.to_thread(own_etcd.start)
    assert await within(anext(watch)) == Delete("withdrawn")
    assert keys_of(own_etcd, root).keys() == {"kept"}
    await kept.withdraw()
    assert await within(anext(watch)) == Delete("kept")


async def test_registration_waits_for_etcd_to_come(own_etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    own_etcd.stop()
    watch = make(own_etcd).watch("")
    registering = asyncio.create_task(make(own_etcd).register("k", b"v"))
    await asyncio.to_thread(own_etcd.start)
    await within(registering)
    assert await within(anext(watch)) == Put("k", b"v")


async def test_registration_that_failed_leaves_nothing(own_etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    """etcd hangs, so that it may well carry out what nobody waits for any more."""
    owner = make(own_etcd, register_timeout_s=1.5)
    await owner.register("first", b"1")
    own_etcd.signal(signal.SIGSTOP)
    with pytest.raises(ConfigError, match="etcd"):
        await owner.register("k", b"v")
    own_etcd.signal(signal.SIGCONT)
    await eventually(lambda: _registers(owner))
    await within(owner.register("last", b"2"))
    assert keys_of(own_etcd, root).keys() == {"first", "last"}


def _registers(owner: Any) -> bool:
    return not owner._entries._silent


@pytest.mark.alone
async def test_etcd_that_hangs_is_left_for_another_endpoint(
    own_etcd: EtcdServer, tmp_path: Path, root: str, make: MakeEtcd
) -> None:
    """The watch has a connection that looks alive: the kernel of the other side answers for it."""
    with EtcdServer(tmp_path) as second:
        both = f"{own_etcd.url},{second.url}"  # two clusters, which they should not be: so we see where one looks
        watch = make(own_etcd, endpoints=both).watch("")
        await make(own_etcd).register("first", b"1")
        await make(second).register("second", b"2")
        view: dict[str, bytes] = {}
        await follow(watch, {"first": b"1"}, view=view)
        started_s = time.monotonic()
        own_etcd.signal(signal.SIGSTOP)
        while view.get("second") != b"2":
            event = await within(anext(watch))
            view[event.key] = event.value if isinstance(event, Put) else b""
        assert time.monotonic() - started_s < 6
        own_etcd.signal(signal.SIGCONT)


async def test_first_endpoint_need_not_be_there(etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    discovery = make(etcd, endpoints=f"{UNREACHABLE}, {etcd.url}/")
    watch = discovery.watch("")
    await discovery.register("k", b"v")
    await follow(watch, {"k": b"v"})


async def test_compaction_under_a_watcher_that_was_away(etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    """What it would resume from is gone."""
    owner, other = make(etcd), make(etcd)
    watch = other.watch("")
    first = await owner.register("a", b"1")
    await follow(watch, {"a": b"1"})
    other._mirror._revision = 1  # it asks for all from there on
    await first.withdraw()
    await owner.register("b", b"2")
    revision = ask(etcd, "/v3/kv/range", {"key": encoded("x")})["header"]["revision"]
    ask(etcd, "/v3/kv/compaction", {"revision": revision})
    other._mirror.reconnect()
    view = {"a": b"1"}
    await follow(watch, {"b": b"2"}, view=view)


async def test_value_over_etcds_limit(etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    owner = make(etcd)
    with pytest.raises(ConfigError, match="too large"):
        await owner.register("k", bytes(1_600_000))
    await owner.register("k", b"small")


async def test_snapshot_larger_than_any_message(etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    owner = make(etcd)
    entries = {f"{n}": bytes([n]) * (1 << 20) for n in range(6)}
    for key, value in entries.items():
        await owner.register(key, value)
    await follow(make(etcd).watch(""), entries)


async def test_close_without_etcd_is_quick(own_etcd: EtcdServer, make: MakeEtcd) -> None:
    owner = make(own_etcd)
    await owner.register("k", b"v")
    own_etcd.signal(signal.SIGSTOP)
    await within(owner.close(), 5)
    own_etcd.signal(signal.SIGCONT)


async def test_close_ends_a_registration_under_way(own_etcd: EtcdServer, make: MakeEtcd) -> None:
    owner = make(own_etcd)
    own_etcd.signal(signal.SIGSTOP)
    registering = asyncio.create_task(owner.register("k", b"v"))
    await asyncio.sleep(0)
    await within(owner.close())
    with pytest.raises(ConfigError, match="closed"):
        await registering
    own_etcd.signal(signal.SIGCONT)


async def test_key_that_is_no_text(etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    owner = make(etcd)
    with pytest.raises(ValueError, match="surrogates"):
        await owner.register("\ud800", b"v")
    await owner.register("k", b"v")


async def test_outage_is_logged_once(own_etcd: EtcdServer, make: MakeEtcd, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    owner = make(own_etcd)
    await owner.register("k", b"v")
    own_etcd.stop()
    await eventually(lambda: caplog.text.count("trying again") == 1)
    await asyncio.to_thread(own_etcd.start)
    await eventually(lambda: "answers again" in caplog.text)
    assert caplog.text.count("trying again") == 1
