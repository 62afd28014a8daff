"""A deployment's secret on real connections: who gets through, what strangers learn, what is logged."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from dynamo.errors import NotFoundError, UnreachableError
from dynamo.runtime.codec import HANDSHAKE_FRAME_BYTES, PROTOCOL_VERSION, GoAway, Hello, Message, Proof
from dynamo.runtime.credentials import NO_CREDENTIALS, Credentials
from dynamo.runtime.request_plane import connection, limits, tcp
from dynamo.runtime.request_plane.call import PayloadHandler
from dynamo.runtime.request_plane.handshake import caller_handshake
from dynamo.runtime.request_plane.tcp import TcpPlane
from dynamo.testing import within
from dynamo.testing.request_plane.raw_peer import RawPeer, call_message, connected, listening
from dynamo.testing.request_plane.service import Service, call, collect, failure, serving

OURS = Credentials(secret=b"the deployment's own secret")
THEIRS = Credentials(secret=b"the secret of another one..")


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


@pytest.fixture(autouse=True)
def _say_everything_again() -> Iterator[None]:
    yield
    connection._warn_of_stranger.cache_clear()
    tcp._warn_of_open_door.cache_clear()


@pytest.fixture
async def guarded() -> AsyncIterator[Service]:
    async with serving(TcpPlane(credentials=OURS), echo) as service:
        yield service
        channel = await service.connect()  # whatever a test has done, friends are served
        assert await collect(call(channel, "echo", "unharmed")) == ["unharmed"]


@pytest.mark.parametrize("way", ["unix", "tcp"])
@pytest.mark.parametrize(
    ("caller", "worker", "reason"),
    [(NO_CREDENTIALS, OURS, "has none"), (OURS, NO_CREDENTIALS, "has none"), (OURS, THEIRS, "different secrets")],
    ids=["caller without", "worker without", "different ones"],
)
async def test_mismatch(
    caller: Credentials, worker: Credentials, reason: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller finds out at once, is told why, and may go to another worker; both sides log it once."""
    async with serving(TcpPlane(credentials=worker), echo) as service:
        address = service.listener.address
        if way == "tcp":
            address = msgspec.structs.replace(address, unix=None)
        for _ in range(3):
            with pytest.raises(UnreachableError, match=reason):
                await _called(TcpPlane(credentials=caller), address)
    assert 1 <= sum(reason in record.message for record in caplog.records) <= 2
    assert not [record for record in caplog.records if reason not in record.message]


async def _called(plane: TcpPlane, address: Any) -> None:
    channel = await within(plane.connect(address))
    try:
        raise await failure(call(channel, "echo", 1))
    finally:
        await within(channel.close())


async def call_behind_the_greeting(peer: RawPeer, service: Service) -> None:
    """As a caller of a deployment without a secret may."""
    peer.greet(service.listener.address)
    peer.send(call_message(1, "echo"))


async def call_in_place_of_the_proof(peer: RawPeer, service: Service) -> None:
    peer.send(Hello(PROTOCOL_VERSION, nonce=bytes(32)))
    await peer.frame()
    peer.send(call_message(1, "echo"))


async def guessed_proof_and_a_call(peer: RawPeer, service: Service) -> None:
    peer.send(Hello(PROTOCOL_VERSION, nonce=bytes(32)))
    peer.send(Proof(bytes(32)), call_message(1, "echo"))


@pytest.mark.parametrize("attack", [call_behind_the_greeting, call_in_place_of_the_proof, guessed_proof_and_a_call])
async def test_no_call_of_a_stranger_is_served(attack: Any) -> None:
    served: list[str] = []

    def dispatch(endpoint: str) -> PayloadHandler:
        served.append(endpoint)
        raise NotFoundError(endpoint)

    listener = await TcpPlane(credentials=OURS).listen(dispatch)
    async with connected(listener.address) as peer:
        await attack(peer, Service(TcpPlane(), listener))
        answer = await peer.rest()
        assert b"unauthorized" in answer or b"protocol_error" in answer
    await within(listener.close())
    assert not served


async def test_frames_stay_small_until_the_proof(guarded: Service) -> None:
    async with connected(guarded.listener.address) as peer:
        peer.send(Hello(PROTOCOL_VERSION, nonce=bytes(32)))
        peer.writer.write((HANDSHAKE_FRAME_BYTES + 1).to_bytes(4, "big"))
        assert b"over the limit" in await peer.rest()


async def test_empty_frames_do_not_count_as_an_introduction(guarded: Service) -> None:
    async with connected(guarded.listener.address) as peer:
        for _ in range(5):
            peer.send()
        peer.writer.write((HANDSHAKE_FRAME_BYTES + 1).to_bytes(4, "big"))
        assert b"over the limit" in await peer.rest()


async def test_greeting_without_a_proof_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, guarded: Service) -> None:
    channel = await guarded.connect()
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.02)
    async with connected(guarded.listener.address) as peer:
        peer.send(Hello(PROTOCOL_VERSION, nonce=bytes(32)))
        assert b"introduce" in await peer.rest()
    monkeypatch.undo()
    assert await collect(call(channel, "echo", 1)) == [1]


async def test_call_behind_the_proof_is_served_without_another_round_trip(guarded: Service) -> None:
    handshake = caller_handshake(guarded.listener.address.secret, OURS)
    async with connected(guarded.listener.address) as peer:
        peer.send(handshake.greeting())
        messages = [*await peer.frame(), *await peer.frame()]
        assert [type(message) for message in messages] == [Hello, Proof]
        (proof,) = filter(None, map(handshake.receive, messages))
        peer.send(proof, call_message(1, "echo", "at once"))
        assert [type(message).__name__ for message in await peer.frame()] == ["Item", "End"]


async def test_caller_tells_nothing_to_a_worker_that_does_not_prove_itself() -> None:
    heard: list[Message] = []

    async def impostor(peer: RawPeer) -> None:
        heard.extend(await peer.frame())
        peer.send(Hello(PROTOCOL_VERSION, nonce=bytes(32)))
        peer.send(Proof(bytes(32)))
        heard.extend(await peer.frame())
        assert await peer.rest() == b""

    async with listening(impostor) as address:
        with pytest.raises(UnreachableError, match="different secrets"):
            await within(TcpPlane(credentials=OURS).connect(msgspec.structs.replace(address, secret="instance's")))
    assert [type(message) for message in heard] == [Hello, GoAway]
    assert isinstance(heard[0], Hello)
    assert heard[0].secret == ""


@pytest.mark.parametrize("ending", ["silent", "hangs up"])
async def test_worker_that_does_not_introduce_itself(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr(tcp, "CONNECT_TIMEOUT_S", 0.1 if ending == "silent" else 10)
    gone = asyncio.Event()

    async def worker(peer: RawPeer) -> None:
        await peer.frame()
        if ending == "silent":
            assert await peer.rest() == b""  # the caller gives up, and leaves nothing open
        gone.set()

    async with listening(worker) as address:
        with pytest.raises(UnreachableError):
            await within(TcpPlane(credentials=OURS).connect(address))
        await within(gone.wait())


@pytest.mark.parametrize(
    ("host", "credentials", "warned"),
    [("127.0.0.1", NO_CREDENTIALS, 0), ("0.0.0.0", NO_CREDENTIALS, 1), ("0.0.0.0", OURS, 0)],
)
async def test_open_door_is_warned_of_once(
    host: str, credentials: Credentials, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        async with serving(TcpPlane(host, credentials=credentials), echo):
            pass
    assert sum("--request-plane-secret-file" in record.message for record in caplog.records) == warned
