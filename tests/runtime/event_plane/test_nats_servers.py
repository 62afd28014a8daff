"""What a person may write, and that nothing secret is shown."""

import pytest

from dynamo.errors import ConfigError
from dynamo.runtime.event_plane.nats_servers import NatsServers


def test_one_server() -> None:
    servers = NatsServers.parse("nats://broker:4333")
    assert (servers.urls, servers.tls) == (("nats://broker:4333",), False)
    assert (servers.user, servers.password, servers.token) == (None, None, None)


def test_several_and_the_usual_port() -> None:
    servers = NatsServers.parse("tls://a, tls://[::1]:5000/")
    assert (servers.urls, servers.tls) == (("tls://a:4222", "tls://[::1]:5000"), True)


def test_user_and_password() -> None:
    servers = NatsServers.parse("nats://a,nats://me:p%40ss%2C@b")
    assert servers.urls == ("nats://a:4222", "nats://b:4222")
    assert (servers.user, servers.password, servers.token) == ("me", "p@ss,", None)


def test_token() -> None:
    servers = NatsServers.parse("nats://t%2Fken@a")
    assert (servers.user, servers.password, servers.token) == (None, None, "t/ken")


@pytest.mark.parametrize("text", ["nats://me:secret@a:1", "nats://secret@a:1"])
def test_secrets_are_not_shown(text: str) -> None:
    servers = NatsServers.parse(text)
    assert str(servers) == "nats://a:1"
    assert "secret" not in repr(servers)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "broker:4222",
        "http://secret@a",
        "nats://",
        "nats://secret@a:port",
        "nats://secret@a:70000",
        "nats://secret@a:0",
        "nats://secret@a/path",
        "nats://secret@a?x=1",
        "nats://secret@a,",
        "nats://secret@[::1",
        "nats://a,tls://secret@b",
    ],
)
def test_what_is_no_server(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        NatsServers.parse(text)
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None
