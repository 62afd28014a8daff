"""Hosts of a test's own, as network namespaces on one switch. Needs root, and iproute2."""

import asyncio
import ctypes
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

_NETWORK = "198.18.0"  # set aside for measurements of networks (RFC 2544)
_CLONE_NEWNET = 0x40000000
_PIPE_BYTES = 64 << 10


class Host:
    """What runs with `prefix` before its command line has this host's network, and nothing else."""

    def __init__(self, name: str, address: str, switch: str, port: str) -> None:
        self.name = name
        self.address = address
        self._switch = switch
        self._port = port

    @property
    def prefix(self) -> Sequence[str]:
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Pulls its plug out of the switch: packets vanish without a word, in both directions."""
        _ip("-netns", self._switch, "link", "set", self._port, "down")

    def heal(self) -> None:
        _ip("-netns", self._switch, "link", "set", self._port, "up")

    def socket(self) -> socket.socket:
        """One of this host, for a program that is not on it."""
        with open("/proc/self/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            _enter(there.fileno())
            try:
                return socket.socket()
            finally:
                _enter(home.fileno())

    @asynccontextmanager
    async def reachable(self, port: int) -> AsyncIterator[int]:
        """A port of 127.0.0.1 here that leads to that `port` of 127.0.0.1 there."""
        open_pipes: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sock = self.socket()
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            there_reader, there_writer = await asyncio.open_connection(sock=sock)
            for source, sink in ((reader, there_writer), (there_reader, writer)):
                task = asyncio.create_task(_pipe(source, sink))
                open_pipes.add(task)
                task.add_done_callback(open_pipes.discard)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in open_pipes:
                task.cancel()
            await asyncio.gather(*open_pipes, return_exceptions=True)


def missing() -> str:
    """Why there can be no hosts here; "" when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no ip command (on Debian and Ubuntu: apt-get install iproute2)"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return "" if probe.returncode == 0 else f"network namespaces are forbidden here: {probe.stderr.decode().strip()}"


@contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Hosts that reach each other through a switch. At the end nothing of them is left."""
    prefix = f"dyn-{secrets.token_hex(3)}"
    switch = f"{prefix}-switch"
    made = [Host(f"{prefix}-{name}", f"{_NETWORK}.{i + 1}", switch, f"port{i}") for i, name in enumerate(names)]
    try:
        _add_namespace(switch)
        _ip("-netns", switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-netns", switch, "link", "set", "bridge0", "up")
        for host, port in zip(made, (f"port{i}" for i in range(len(made))), strict=True):
            _add_namespace(host.name)
            _ip("-netns", host.name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-netns", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-netns", host.name, "link", "set", "eth0", "up")
            _ip("-netns", switch, "link", "set", port, "master", "bridge0", "up")
        yield made
    finally:
        for name in (switch, *(host.name for host in made)):
            if Path(f"/run/netns/{name}").exists():
                _ip("netns", "delete", name)


def _add_namespace(name: str) -> None:
    _ip("netns", "add", name)
    _ip("-netns", name, "link", "set", "lo", "up")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def _enter(descriptor: int) -> None:
    """Changes the network namespace of this thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(descriptor, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(_PIPE_BYTES):
            sink.write(data)
            await sink.drain()
    except OSError:
        pass  # the other direction sees it too
    finally:
        sink.close()
