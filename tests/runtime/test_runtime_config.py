import pytest

from dynamo.errors import ConfigError
from dynamo.runtime.config import RuntimeConfig


def test_advertised_address() -> None:
    assert RuntimeConfig().advertised() is None
    assert RuntimeConfig(rpc_port=5000, rpc_advertise="gate.example:81").advertised() == ("gate.example", 81)
    assert RuntimeConfig(rpc_port=5000, rpc_advertise="[2001:db8::1]:81").advertised() == ("2001:db8::1", 81)


@pytest.mark.parametrize("address", ["gate", "gate:", ":81", "gate:x", "gate:0", "gate:65536", ""])
def test_what_is_no_advertised_address(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        RuntimeConfig(rpc_port=5000, rpc_advertise=address).advertised()


def test_advertised_address_without_a_port_behind_it() -> None:
    with pytest.raises(ConfigError, match="--rpc-port"):
        RuntimeConfig(rpc_advertise="gate.example:81").advertised()
