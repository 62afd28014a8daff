"""CPU time and memory of a process and all its descendants, from /proc (Linux)."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_KIB_PER_MIB = 1024


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    reaped_s: float  # CPU seconds of children that have ended and were waited for


def cpu_s(root: int) -> float:
    """CPU seconds since the start of `root`; 0 when there is no such process."""
    stats = _stats()
    return sum(_own_cpu_s(pid) + stats[pid].reaped_s for pid in _tree(root, stats))


def pss_mib(root: int) -> float:
    """Memory in MiB, pages that several processes share counted in proportion; 0 when there is no such process."""
    return sum(map(_own_pss_kib, _tree(root, _stats()))) / _KIB_PER_MIB


def descriptors(root: int) -> int:
    """How many are open; 0 when there is no such process."""
    return sum(map(_own_descriptors, _tree(root, _stats())))


def _tree(root: int, stats: dict[int, _Stat]) -> list[int]:
    members = [root] if root in stats else []
    for member in members:  # grows while it is read
        members += [pid for pid, stat in stats.items() if stat.parent == member]
    return members


def _stats() -> dict[int, _Stat]:
    found = {int(name): _stat(name) for name in os.listdir("/proc") if name.isdigit()}
    return {pid: stat for pid, stat in found.items() if stat is not None}


def _stat(pid: str) -> _Stat | None:
    try:
        fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None  # it has ended meanwhile
    return _Stat(parent=int(fields[1]), reaped_s=(int(fields[13]) + int(fields[14])) / _TICKS_PER_SECOND)


def _own_cpu_s(pid: int) -> float:
    """Of all its threads, in nanoseconds where /proc counts ticks of 10 ms; see clock_getcpuclockid(3)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _own_descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _own_pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
