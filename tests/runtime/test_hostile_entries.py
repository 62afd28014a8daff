"""Discovery says things that no process of ours would: clients go on, and call those that are sound."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynamo.errors import ConnectionLostError
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.discovery.base import Put
from dynamo.runtime.discovery.entry import read_entry
from dynamo.runtime.instance import Instance
from dynamo.runtime.request_plane.base import Address
from dynamo.runtime.request_plane.tcp import TcpPlane, host_id
from dynamo.testing import eventually, run_strictly, within
from dynamo.testing.scripted import Scripted, answers

PREFIX = "instances/ns/backend/generate/"
GOOD = Instance(
    instance_id=1,
    namespace="ns",
    component="backend",
    endpoint="generate",
    address=Address(tcp_host="127.0.0.1", tcp_port=1),
)
EXTREMES: st.SearchStrategy[Any] = st.sampled_from([None, True, -1, 0, 7, 2**63, 10**40, 0.5, "", "x", "\0", [], {}])
ANYTHING = st.recursive(EXTREMES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner))
DEEP = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@st.composite
def nearly_right(draw: st.DrawFn) -> bytes:
    value = json.loads(GOOD.encode())
    for _ in range(draw(st.integers(1, 2))):
        place = value["address"] if draw(st.booleans()) else value
        if isinstance(place, dict) and place:
            place[draw(st.sampled_from(sorted(place)))] = draw(ANYTHING)
    return json.dumps(value).encode()


VALUES = st.binary(max_size=40) | ANYTHING.map(lambda value: json.dumps(value).encode()) | nearly_right()
SUFFIXES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def key_of(value: bytes, suffix: str) -> str:
    """The key that belongs to an entry, else one that anybody may take."""
    with contextlib.suppress(ValueError):
        return Instance.decode(value).key
    return PREFIX + suffix


@settings(max_examples=60)
@given(st.lists(st.tuples(SUFFIXES, VALUES), min_size=1, max_size=3))
@example([("1", DEEP), ("", b""), ("g", GOOD.encode()), ("-1", GOOD.encode()), ("f" * 5000, GOOD.encode())])
def test_clients_go_on(entries: list[tuple[str, bytes]]) -> None:
    async def run() -> None:
        runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
        hostile, worker = runtime.sibling(), runtime.sibling()
        endpoint = runtime.endpoint("ns.backend.generate")
        client = await endpoint.client()
        for suffix, value in entries:
            with contextlib.suppress(ValueError):  # the key is taken
                await hostile.register(key_of(value, suffix), value)
        await worker.endpoint("ns.backend.generate").start(Scripted[object, object](answers()))
        await eventually(lambda: worker.instance_id in client.instance_ids())
        assert all(
            instance.instance_id == i for i, instance in zip(client.instance_ids(), client.instances(), strict=True)
        )
        await within(runtime.close())

    run_strictly(run())


def test_an_entry_counts_under_its_own_key_only() -> None:
    assert Instance.decode(GOOD.encode()).key == PREFIX + "1"
    event = Put(PREFIX + "2", GOOD.encode())
    with pytest.raises(ValueError, match="another key"):
        read_entry(event, Instance)


HOSTS = st.sampled_from(["", "\0", "a" * 300, "é" * 70, "..", "127.0.0.1", "::1"])  # that no name server is asked for
ADDRESSES = st.builds(
    Address,
    tcp_host=st.none() | HOSTS,
    tcp_port=st.none() | st.just(1),
    unix=st.none() | HOSTS,
    host_id=st.none() | st.just(host_id()),
    secret=st.sampled_from(["", "x" * 5000]),
)


@settings(max_examples=40)
@given(ADDRESSES)
@example(Address(tcp_host="127.0.0.1", tcp_port=1, unix="\0" * 200, host_id=host_id()))
def test_whatever_an_address_says_nobody_is_there(address: Address) -> None:
    async def run() -> None:
        with pytest.raises(ConnectionLostError):
            await within(TcpPlane().connect(address))

    run_strictly(run())
