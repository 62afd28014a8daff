"""Ending with the process that started this one, even when that is killed."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

PARENT_VARIABLE = "DYN_PARENT_PID"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def follow_parent(environ: Mapping[str, str] | None = None) -> None:
    """Asks the kernel for a SIGTERM when the parent dies, if the parent asked for that by DYN_PARENT_PID."""
    parent = (os.environ if environ is None else environ).get(PARENT_VARIABLE, "")
    if sys.platform != "linux" or parent != str(os.getppid()):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if parent != str(os.getppid()):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)
