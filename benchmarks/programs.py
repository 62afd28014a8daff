"""The processes of one measurement, started in a scratch directory of their own."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from dynamo.runtime.parent import PARENT_VARIABLE
from dynamo.runtime.process import READY

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent  # where `python -m benchmarks…` works
START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 10.0
_POLL_S = 0.05
_TAIL_CHARS = 2000


class BenchmarkError(Exception):
    """Nothing could be measured."""


class Programs:
    """Servers in the background, and load generators that each give one result."""

    def __init__(self, directory: Path, log_level: str = "warn") -> None:
        self.discovery = directory / "discovery"
        self._directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        # Nothing of the caller's may steer them, and nothing of theirs may outlive them.
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("DYN_")} | {
            "DYN_FILE_KV": str(self.discovery),
            "DYN_CACHE_DIR": str(directory / "cache"),
            "DYN_LOG": log_level,
            PARENT_VARIABLE: str(os.getpid()),
        }

    def start(self, name: str, module: str, *arguments: str) -> int:
        """Runs `python -m module`; its process id."""
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=self._environ,
                start_new_session=True,
            )
        self._running[name] = process
        return process.pid

    def wait_until_ready(self, name: str) -> str:
        """What the process says as it becomes ready; BenchmarkError when it does not."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s and self._running[name].poll() is None:
            for line in self.output(name).splitlines(keepends=True):
                if line.startswith(READY) and line.endswith("\n"):
                    return line.removeprefix(READY).strip()
            time.sleep(_POLL_S)
        raise BenchmarkError(f"the {name} did not start:\n{self.output(name)[-_TAIL_CHARS:]}")

    def drive(self, module: str, job: msgspec.Struct, result: type[T], timeout_s: float) -> T:
        """Runs a load generator to its end; BenchmarkError when it fails or takes longer."""
        try:
            finished = subprocess.run(  # noqa: S603 - our own modules
                [sys.executable, "-m", module, msgspec.json.encode(job).decode()],
                capture_output=True,
                check=False,
                cwd=ROOT,
                env=self._environ,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{module} took more than {timeout_s:.0f} s") from None
        if finished.returncode != 0:
            raise BenchmarkError(f"{module} failed:\n{finished.stderr.decode(errors='replace')[-_TAIL_CHARS:]}")
        try:
            return msgspec.json.decode(finished.stdout, type=result)
        except msgspec.DecodeError as error:
            said = finished.stderr.decode(errors="replace")[-_TAIL_CHARS:]
            raise BenchmarkError(f"{module} gave {len(finished.stdout)} bytes of no use: {error}\n{said}") from error

    def stop(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def output(self, name: str) -> str:
        """All that it has printed."""
        return self._log(name).read_text(errors="replace")


@contextmanager
def programs(log_level: str = "warn") -> Iterator[Programs]:
    """No program and no file is left at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-") as directory:
        started = Programs(Path(directory), log_level)
        try:
            yield started
        finally:
            started.stop()
