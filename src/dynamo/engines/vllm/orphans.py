"""Keeps vLLM's processes from outliving the worker that started them, even when it is killed.

vLLM's engine process does not notice the death of the process that started it. It loads plugins, however, as each of
its processes starts; `die_with_owner` is registered as one in pyproject.toml.
"""

import ctypes
import os
import signal

PLUGIN_NAME = "dynamo_orphans"

_OWNER = "DYN_VLLM_OWNER_PID"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def own_children() -> None:
    """From now on this process's vLLM processes die with it.

    They die with the *thread* that starts them, to be exact: it has to live as long as the engine.
    """
    os.environ[_OWNER] = str(os.getpid())


def die_with_owner() -> None:
    """Called by vLLM in each of its processes. Does nothing where the worker did not ask for it, or in the worker."""
    owner = os.environ.get(_OWNER)
    if owner is None or int(owner) == os.getpid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if not _is_alive(int(owner)):  # it died while this process was starting
        os.kill(os.getpid(), signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
