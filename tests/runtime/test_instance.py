import msgspec
import pytest

from dynamo.runtime import Instance
from dynamo.runtime.instance import EndpointId
from dynamo.runtime.request_plane.base import Address

INSTANCE = Instance(
    instance_id=0xABC,
    namespace="ns",
    component="comp",
    endpoint="gen",
    address=Address(tcp_host="127.0.0.1", tcp_port=5, secret="s"),
)


def test_entry_round_trip() -> None:
    assert Instance.decode(INSTANCE.encode()) == INSTANCE
    assert INSTANCE.key == "instances/ns/comp/gen/abc"
    assert INSTANCE.key.startswith(INSTANCE.endpoint_id.instances_prefix)


def test_prefix_of_one_endpoint_is_not_that_of_another() -> None:
    assert not EndpointId("ns", "comp", "generate2").instances_prefix.startswith(
        EndpointId("ns", "comp", "generate").instances_prefix
    )


def test_entry_of_a_newer_version_may_say_more() -> None:
    value = msgspec.json.decode(INSTANCE.encode()) | {"zone": "a"}
    assert Instance.decode(msgspec.json.encode(value)) == INSTANCE


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b"\xff\xfe", b'{"instance_id": "x"}'])
def test_what_is_no_entry(value: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - msgspec's errors are ValueErrors
        Instance.decode(value)


def test_endpoint_beside() -> None:
    assert str(EndpointId("ns", "comp", "generate").beside("load")) == "ns.comp.load"


def test_endpoint_id_reads_what_it_writes() -> None:
    assert str(EndpointId.parse("dyn://a.b-c.d_1")) == "a.b-c.d_1"
    assert EndpointId.parse("ä.模型.c") == EndpointId("ä", "模型", "c")
