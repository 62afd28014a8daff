"""Starting the host's block manager where there is none."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from dynamo.config import as_flags
from dynamo.errors import DynamoError, UnavailableError
from dynamo.kvbm.admin import ask
from dynamo.kvbm.config import KvbmOptions
from dynamo.kvbm.socket_path import private_place
from dynamo.protocols.kvbm import Inspect
from dynamo.runtime.config import RuntimeConfig

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 20.0
_POLL_S = 0.05
_RIVAL_S = 5.0
_ANSWER_S = 2.0
_NOT_THE_SERVICES = ("rpc_port", "rpc_advertise", "system_host", "system_port")  # the worker listens there
_BY_ENVIRONMENT = ("nats_server",)  # may hold a password


def service_command(socket: Path, config: RuntimeConfig, linger_s: float | None) -> list[str]:
    """`linger_s`: how long it goes on without engines. None: until it is told to end."""
    flags = as_flags(RuntimeConfig, config, without=(*_NOT_THE_SERVICES, *_BY_ENVIRONMENT))
    flags += ["--rpc-port", "0", "--kvbm-socket", str(socket)]
    if linger_s is not None:
        flags += ["--system-port", "-1", "--kvbm-linger", str(linger_s)]
    return [sys.executable, "-m", "dynamo.kvbm", *flags]


def ensure_service(options: KvbmOptions, config: RuntimeConfig, timeout_s: float = START_TIMEOUT_S) -> Path:
    """The socket of a service that answers; it outlives this process. Blocks for up to `timeout_s`.

    Starts one if there is none, unless `options` say that somebody else does.

    Raises ConfigError for a socket that cannot be, UnavailableError when no service comes up.
    """
    path = options.socket_path
    private_place(path)
    if _answers(path):
        return path
    deadline_s = time.monotonic() + timeout_s
    if not options.start:
        _wait(path, deadline_s)
        return path
    log = path.with_name(path.name + ".log")
    try:
        started = _spawn(service_command(path, config, options.linger_s), log)
    except OSError as error:
        raise UnavailableError(f"no block manager could be started at {path}: {error}") from error
    logger.info("started a block manager at %s, which logs to %s", path, log)
    try:
        while started.poll() is None and time.monotonic() < deadline_s:
            if _answers(path):
                return path
            time.sleep(_POLL_S)
        _wait(path, min(deadline_s, time.monotonic() + _RIVAL_S))  # another worker's may have been there first
    except UnavailableError as error:
        raise UnavailableError(f"{error}; {log} may say why") from None
    return path


def _wait(path: Path, deadline_s: float) -> None:
    while not _answers(path):
        if time.monotonic() >= deadline_s:
            raise UnavailableError(f"no block manager has come up at {path}")
        time.sleep(_POLL_S)


def _spawn(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """In a session of its own: neither Ctrl-C nor the end of the worker's group is meant for it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    threading.Thread(target=process.wait, name="kvbm-service", daemon=True).start()  # so that it leaves no zombie
    return process


def _answers(path: Path) -> bool:
    """Not only whether it accepts: one that was just killed may seem to, and one that hangs does."""
    try:
        ask(path, Inspect(), _ANSWER_S)
    except DynamoError:
        return False
    return True
