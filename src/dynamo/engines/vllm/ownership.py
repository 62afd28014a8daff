"""Ties the lives of vLLM's processes to that of the worker that starts them.

By itself vLLM's engine process does not notice the death of the process that started it. It loads plugins, however,
as each of its processes starts; plugin.py is registered as one, and calls `follow_owner`.
"""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

PLUGIN_NAME = "dynamo_ownership"

_OWNER = "DYN_VLLM_OWNER_PID"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def own_children() -> None:
    """From now on this process's vLLM processes follow it.

    To be exact, they die with the *thread* that starts them: it has to live as long as the engine.
    """
    os.environ[_OWNER] = str(os.getpid())


def follow_owner() -> None:
    """Called by vLLM in each of its processes. Does nothing in the worker itself, and where no worker asked for it."""
    owner = os.environ.get(_OWNER)
    if owner is None or int(owner) == os.getpid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if not _is_alive(int(owner)):  # it died while this process was starting
        os.kill(os.getpid(), signal.SIGKILL)


def kill_tree(pid: int) -> None:
    """Kills a process and all below it, also those that are too young to have loaded the plugin."""
    for each in (pid, *descendants(pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """All processes below `pid`; none when there is no such process."""
    try:
        children = [
            int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return []
    return children + [below for child in children for below in descendants(child)]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
