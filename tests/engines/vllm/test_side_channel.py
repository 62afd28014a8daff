import socket
import subprocess
import sys

import pytest

from dynamo.engines.vllm import side_channel as side_channel_module
from dynamo.engines.vllm.side_channel import SideChannel, _hold, side_channel
from dynamo.errors import ConfigError

HOST = "127.0.0.1"
PROCESSES = 20
HOLD = (
    "from dynamo.engines.vllm.side_channel import SideChannel\n"
    f"channel = SideChannel({HOST!r}, 2)\n"
    "print(channel.port, flush=True)\n"
    "input()\n"
)


def listen(port: int) -> socket.socket:
    """As ZeroMQ does it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, port))
    sock.listen()
    return sock


def test_many_processes_at_once_get_different_ports() -> None:
    command = [sys.executable, "-c", HOLD]
    holders = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    try:
        firsts = [int(holder.stdout.readline()) for holder in holders if holder.stdout is not None]
    finally:
        for holder in holders:
            holder.communicate("\n")

    assert len({port for first in firsts for port in (first, first + 1)}) == 2 * PROCESSES


def test_vllm_can_listen_on_all_ports_that_are_held() -> None:
    channel = SideChannel(HOST, 3)
    try:
        for port in range(channel.port, channel.port + 3):
            with listen(port), socket.create_connection((HOST, port)):
                pass
    finally:
        channel.close()


def test_nobody_else_who_asks_for_any_port_gets_a_held_one() -> None:
    channel = SideChannel(HOST, 1)
    try:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((HOST, channel.port))
        others = [SideChannel(HOST, 1) for _ in range(50)]
        try:
            assert channel.port not in {other.port for other in others}
        finally:
            for each in others:
                each.close()
    finally:
        channel.close()


def test_nothing_is_kept_of_a_row_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    def hold(host: str, port: int) -> socket.socket:
        if len(made) in (2, 4):  # the third of a row is somebody's, twice
            made.append(socket.socket())
            made[-1].close()
            raise OSError("in use")
        made.append(_hold(host, port))
        return made[-1]

    monkeypatch.setattr(side_channel_module, "_hold", hold)
    channel = SideChannel(HOST, 3)
    assert [sock.fileno() >= 0 for sock in made] == [False] * (len(made) - 3) + [True] * 3
    channel.close()


def test_a_port_is_free_again_after_close() -> None:
    channel = SideChannel(HOST, 1)

    channel.close()
    channel.close()

    with socket.socket() as other:
        other.bind((HOST, channel.port))


def test_environment_of_vllm() -> None:
    environ: dict[str, str] = {}

    with side_channel(environ, "localhost", 2):
        port = int(environ["VLLM_NIXL_SIDE_CHANNEL_PORT"])
        assert environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] in (HOST, "::1")
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind((HOST, port + 1))


def test_what_the_user_has_set_stays() -> None:
    environ = {"VLLM_NIXL_SIDE_CHANNEL_PORT": "5600"}
    with side_channel(environ, "10.1.2.3", 1):
        assert environ == {"VLLM_NIXL_SIDE_CHANNEL_PORT": "5600", "VLLM_NIXL_SIDE_CHANNEL_HOST": "10.1.2.3"}

    environ = {"VLLM_NIXL_SIDE_CHANNEL_HOST": HOST}
    with side_channel(environ, "10.1.2.3", 1):
        assert environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] == HOST


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "a" * 100])
def test_an_address_that_is_not_ours(host: str) -> None:
    with pytest.raises(ConfigError, match=host), side_channel({}, host, 1):
        pass
