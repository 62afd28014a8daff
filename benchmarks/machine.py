"""What the figures depend on: the machine, and how busy it is."""

import os
import platform
from pathlib import Path

CORES = os.cpu_count() or 1
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_model() -> str:
    """Its name, or only the architecture where the kernel does not tell."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def busy_s() -> float:
    """CPU seconds that everything on this machine has used since it started."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[1:8])
    return (user + nice + system + irq + softirq) / _TICKS_PER_SECOND
