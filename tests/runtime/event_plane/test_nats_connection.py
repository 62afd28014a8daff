"""What a broker is shown, and what is never sent to it."""

import asyncio
import builtins
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import pytest

from dynamo.errors import ConfigError, UnreachableError
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.event_plane.make import make_event_plane
from dynamo.runtime.event_plane.nats_connection import NatsConnection
from dynamo.runtime.event_plane.nats_servers import NatsServers
from dynamo.runtime.instance import EndpointId
from dynamo.testing import eventually, within
from dynamo.testing.nats_server import NatsServer, nats_server

PASSWORD = "p@ss:w/rd"
EVENTS = EndpointId("test", "backend", "events")
QUOTED = "p%40ss%3Aw%2Frd"

pytestmark = pytest.mark.usefixtures("broker")  # which says when there is none


async def connect(url: str) -> None:
    connection = await within(NatsConnection.open(NatsServers.parse(url), lambda: None, lambda error: None))
    assert connection.is_open
    await connection.close()
    assert not connection.is_open


async def test_user_and_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with nats_server(tmp_path, "--user", "me", "--pass", PASSWORD) as server:
        await connect(f"nats://me:{QUOTED}@{server.address}")
        for shown in ("", "me:wrong@", "token@"):
            with pytest.raises(UnreachableError, match="Authorization Violation"):
                await connect(f"nats://{shown}{server.address}")
    assert PASSWORD not in caplog.text


async def test_token(tmp_path: Path) -> None:
    async with nats_server(tmp_path, "--auth", PASSWORD) as server:
        await connect(f"nats://{QUOTED}@{server.address}")
        with pytest.raises(UnreachableError, match="Authorization Violation"):
            await connect(f"nats://{server.address}")


async def test_first_server_is_down(broker: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "2").mkdir()
    async with nats_server(tmp_path / "2") as second:
        await broker.kill()
        await connect(f"{broker.url},{second.url}")


async def test_refusals_are_not_logged_with_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with nats_server(tmp_path, "--user", "me", "--pass", "other") as server:
        plane = make_event_plane("nats", f"nats://me:{QUOTED}@{server.address}")
        plane.subscribe(EVENTS, lambda *_: None, lambda: None)
        await eventually(lambda: "Authorization Violation" in caplog.text)
        await plane.close()
    assert PASSWORD not in caplog.text
    assert QUOTED not in caplog.text


@asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Something that speaks first, as NATS does; gives its address, and what it is told."""
    told: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        told.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}", told


async def test_nothing_goes_unencrypted_where_tls_is_wanted() -> None:
    """Whoever is in between could say that the server has no TLS."""
    async with listening(b'INFO {"server_id": "x", "version": "2.9.10", "max_payload": 1048576}\r\n') as (
        address,
        told,
    ):
        with pytest.raises(UnreachableError, match="secure connection required"):
            await connect(f"tls://me:{QUOTED}@{address}")
        await eventually(lambda: bool(told))
    assert not any(told)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"INFO nonsense\r\n", b"\r\n", b"x" * 100_000])
async def test_something_else_than_a_broker(answer: bytes) -> None:
    async with listening(answer) as (address, _):
        with pytest.raises(UnreachableError):
            await connect(f"nats://{address}")


async def test_something_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo.runtime.event_plane.nats_connection.CONNECT_TIMEOUT_S", 0.1)
    async with listening(b"") as (address, _):
        with pytest.raises(UnreachableError, match="TimeoutError"):
            await connect(f"nats://{address}")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that its own key has signed, and the key."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *names, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    return certificate, key


async def test_tls(tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--tls", "--tlscert", str(certificate[0]), "--tlskey", str(certificate[1])]
    async with nats_server(tmp_path, *flags, "--user", "me", "--pass", PASSWORD) as server:
        url = f"tls://me:{QUOTED}@{server.address}"
        with pytest.raises(UnreachableError, match="certificate"):
            await connect(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        await connect(url)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 - as the real one has it
        locals: Mapping[str, object] | None = None,  # noqa: A002
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        if name.startswith("dynamo.runtime.event_plane.nats"):
            raise ImportError(name)
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"pip install 'dynamo-py\[nats\]'"):
        make_event_plane("nats", "nats://a")


async def test_wrong_settings_are_said_at_once() -> None:
    with pytest.raises(ConfigError, match="nats://host:port"):
        DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", event_plane="nats", nats_server="broker"))
    with pytest.raises(ConfigError, match="choose direct or nats"):
        DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", event_plane="zmq"))
