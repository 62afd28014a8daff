"""Ending with the process that started this one, even when that is killed."""

import ctypes
import os
import signal
import sys
from collections.abc import MutableMapping

PARENT_VARIABLE = "DYN_PARENT_PID"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def follow_parent(environ: MutableMapping[str, str] | None = None) -> None:
    """Has the kernel kill this process when its parent dies, if the parent asked for that by DYN_PARENT_PID.

    Killed, not asked to stop: who killed the parent wants an end now, and the port and the accelerator free. The
    variable is taken out of the environment, because processes that this one starts have another parent. Exits when
    the parent is dead already.
    """
    environ = os.environ if environ is None else environ
    parent = environ.pop(PARENT_VARIABLE, None)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent != str(os.getppid()):  # it died before we asked
        sys.exit(f"the process that started this one ({parent}) is gone")
