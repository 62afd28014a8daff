"""A real etcd of a test's own, which can be stopped and started again with what it had.

It has no event loop of its own, nor needs one, so that tests with different loops can share it.
"""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ETCD = shutil.which("etcd")  # Debian's package is etcd-server
_START_S = 30.0
_POLL_S = 0.02
_READY = b"ready to serve client requests"
# It is alone in its cluster, so that it need not wait long for others before it leads.
_QUICK = ("--heartbeat-interval", "50", "--election-timeout", "500")


class EtcdServer:
    """One member, alone in its cluster, on ports that were free. It runs within a `with` block.

    What it logs stands in `log`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        tls: Sequence[str] = (),
        prefix: Sequence[str] = (),
        etcd: str | None = ETCD,
    ) -> None:
        """`tls` are flags that give it certificates; `prefix` is put before its command line, as `ip netns exec x`."""
        assert etcd is not None, "there is no etcd (on Debian and Ubuntu: apt-get install etcd-server)"
        self.url = f"{'https' if tls else 'http'}://{host}:{_free_port()}"
        self.log = directory / "etcd.log"
        self._data = directory / "etcd"
        peer_url = f"http://127.0.0.1:{_free_port()}"
        self._command = [
            *prefix,
            etcd,
            *("--data-dir", str(self._data)),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
            *("--initial-cluster", f"default={peer_url}"),
            *_QUICK,
            *tls,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it serves; AssertionError with its log when that takes too long."""
        with self.log.open("ab") as log:
            said_before = log.tell()
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603
        deadline_s = time.monotonic() + _START_S
        while _READY not in self.log.read_bytes()[said_before:]:
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.stop()
                raise AssertionError(self.log.read_text())
            time.sleep(_POLL_S)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """Kills it; its data stay. Does nothing when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def lose_data(self) -> None:
        """While it is stopped."""
        shutil.rmtree(self._data)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
