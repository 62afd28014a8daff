"""Against a service whose every word is the test's."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from dynamo.errors import ConfigError, ConnectionLostError
from dynamo.kvbm import client as client_module
from dynamo.kvbm.arena import HostArena
from dynamo.kvbm.client import MappedPool, ServiceClient, map_pool
from dynamo.protocols.kvbm import Commit, Discard, Found, Granted, LookUp, Refused, Release, Report
from dynamo.testing.descriptors import open_descriptors
from tests.kvbm.scripted_service import ATTACHED, SLOT_BYTES, Connection, ScriptedService, attach, scripted_service

FOUND = Found(0, [5, 6], 1, [2, 0, 0, 0])


@pytest.fixture(autouse=True)
def no_waiting_between_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_RETRY_S", 0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def service(path: Path) -> Iterator[ScriptedService]:
    with scripted_service(path) as service:
        yield service


@pytest.fixture
def client(path: Path) -> Iterator[ServiceClient]:
    client = ServiceClient(path, attach())
    yield client
    client.close()


def attached(client: ServiceClient, service: ScriptedService) -> Connection:
    client.poll()
    connection = service.accept()
    assert connection.heard() == attach()
    connection.say(ATTACHED)
    client.poll(5.0)
    assert client.connected
    return connection


def test_without_a_service_nothing_is_found_and_nobody_waits(client: ServiceClient) -> None:
    started_s = time.monotonic()
    client.poll(5.0)
    assert client.look_up(b"k" * 32, 100) is None
    client.commit([1], b"k" * 32, b"n" * 8)
    client.discard([1])
    client.report(Report())
    client.release([0])
    assert time.monotonic() - started_s < 4.0
    assert (client.connected, client.generation, client.take_slots(1)) == (False, 0, [])


def test_lookups_and_slots(client: ServiceClient, service: ScriptedService) -> None:
    assert client.look_up(b"k" * 32, 100) is None, "it is not attached yet"
    connection = attached(client, service)
    connection.say(Granted([7, 8, 9]))
    client.poll(5.0)
    assert (client.granted, client.generation) == (3, 1)
    assert client.take_slots(2) == [7, 8]
    client.commit([7], b"k" * 32, b"n" * 8)
    client.discard([8])
    assert [connection.heard(), connection.heard()] == [Commit([7], b"k" * 32, b"n" * 8), Discard([8])]
    assert client.take_slots(5) == [9]

    assert client.look_up(b"k" * 64, 250) == 0
    assert connection.heard() == LookUp(0, b"k" * 64, 250)
    assert client.answer(0) is None
    connection.say(FOUND)
    client.poll(5.0)
    assert client.answer(0) == FOUND
    connection.say(Found(0, [5, 6, 4], 0, [2, 1, 0, 0]))
    client.poll(5.0)
    last = client.answer(0)
    assert last is not None
    assert last.slots == [5, 6, 4]
    client.release([0, 77])
    assert connection.heard() == Release([0])
    connection.say(FOUND)  # it had not heard of the release
    connection.say(Granted([1]))
    client.poll(5.0)
    assert client.granted == 1
    assert client.answer(0) is None


def test_polling_takes_no_longer_than_it_may(client: ServiceClient, service: ScriptedService) -> None:
    attached(client, service)
    started_s = time.monotonic()
    client.poll()
    client.poll(0.02)
    assert 0.02 <= time.monotonic() - started_s < 1.0


def test_a_service_that_goes_takes_everything_with_it_and_a_new_one_begins_anew(
    client: ServiceClient, service: ScriptedService
) -> None:
    connection = attached(client, service)
    connection.say(Granted([7]))
    assert client.look_up(b"k" * 32, 100) == 0
    client.poll(5.0)
    connection.socket.close()
    client.poll(5.0)
    assert (client.connected, client.granted, client.answer(0)) == (False, 0, None)

    attached(client, service)
    assert client.generation == 2
    assert client.look_up(b"k" * 32, 100) == 1, "no id is used twice"


@pytest.mark.parametrize("said", [b"\xff\xff\xff\xff", b"\x01\0\0\0\xc1"])
def test_what_is_no_reply_ends_the_connection(client: ServiceClient, service: ScriptedService, said: bytes) -> None:
    connection = attached(client, service)
    connection.socket.sendall(said)
    client.poll(5.0)
    assert not client.connected


def test_a_service_that_does_not_read_is_left(
    client: ServiceClient, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_UNSENT_BYTES_MAX", 1 << 20)
    attached(client, service)
    for _ in range(10):
        client.look_up(bytes(1 << 20), 0)
    assert client.generation == 1
    assert not client.connected


def test_a_service_that_does_not_answer_is_left(
    client: ServiceClient, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_ATTACH_S", -1.0)
    client.poll()
    connection = service.accept()
    client.poll()
    client.poll()
    assert connection.heard() == attach()
    assert connection.socket.recv(1) == b""


def test_a_refusal_is_said_once(
    client: ServiceClient, service: ScriptedService, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        client.poll()
        service.accept().say(Refused("config_error", "another layout"))
        client.poll(5.0)
    assert not client.connected
    assert caplog.text.count("another layout") == 1


def test_closing_is_for_good(client: ServiceClient, service: ScriptedService) -> None:
    attached(client, service)
    client.close()
    client.close()
    client.poll()
    assert client.look_up(b"k" * 32, 1) is None


def mapped(path: Path, service: ScriptedService, arena: HostArena) -> tuple[MappedPool, Connection]:
    connections: list[Connection] = []

    def answer() -> None:
        connection = service.accept()
        assert connection.heard() == attach(rank=1)
        connection.say(ATTACHED, arena.fd)
        connections.append(connection)

    thread = Thread(target=answer)
    thread.start()
    pool = map_pool(path, attach(rank=1), 5.0)
    thread.join()
    return pool, connections[0]


def test_a_rank_has_the_services_memory(path: Path, service: ScriptedService) -> None:
    arena = HostArena(64, SLOT_BYTES)
    before = open_descriptors()
    pool, connection = mapped(path, service, arena)
    pool.slot(63)[:4] = b"here"
    assert bytes(arena.slot(63)[:4]) == b"here"
    assert (pool.slots, pool.slot_bytes, len(pool.slot(0))) == (64, SLOT_BYTES, SLOT_BYTES)
    assert pool.alive()
    view = pool.slot(63)
    pool.close()
    pool.close()
    assert connection.socket.recv(1) == b"", "the service hears of it"
    assert not pool.alive()
    assert bytes(view[:4]) == b"here", "a view keeps its memory"
    assert open_descriptors() == before + 1, "but for the test's own end"


def test_a_rank_sees_that_the_service_is_gone(path: Path, service: ScriptedService) -> None:
    pool, connection = mapped(path, service, HostArena(64, SLOT_BYTES))
    connection.socket.close()
    assert not pool.alive()
    pool.close()


@pytest.mark.parametrize(
    ("refused", "error"),
    [(Refused("config_error", "no"), ConfigError), (Refused("overloaded", "no"), ConnectionLostError)],
)
def test_a_rank_that_is_refused(path: Path, service: ScriptedService, refused: Refused, error: type[Exception]) -> None:
    thread = Thread(target=lambda: service.accept().say(refused))
    thread.start()
    with pytest.raises(error, match="no"):
        map_pool(path, attach(rank=0), 5.0)
    thread.join()


def test_a_rank_does_not_wait_for_ever(path: Path, service: ScriptedService) -> None:
    with pytest.raises(ConnectionLostError, match="does not answer"):
        map_pool(path, attach(rank=0), 0.05)
    with pytest.raises(ConnectionLostError, match="no block manager"):
        map_pool(path.with_name("other"), attach(rank=0), 0.05)


def test_an_answer_without_memory_is_none(path: Path, service: ScriptedService) -> None:
    thread = Thread(target=lambda: service.accept().say(ATTACHED))
    thread.start()
    with pytest.raises(ConnectionLostError, match="not sent its memory"):
        map_pool(path, attach(rank=0), 5.0)
    thread.join()
