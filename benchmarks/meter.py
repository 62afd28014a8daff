"""Who used the CPU between two moments."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.machine import CORES, busy_s
from benchmarks.process_tree import cpu_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """CPU seconds of each role, and what everything else on the machine took."""

    elapsed_s: float
    cpu_s: Mapping[str, float]
    foreign_percent: float  # of the whole machine


class Meter:
    """Measures from its making to stop()."""

    def __init__(self, roles: Mapping[str, Sequence[int]]) -> None:
        """`roles`: the process ids of each; their descendants count too."""
        self._roles = dict(roles)
        self._cpu_before = self._cpu_s()
        self._busy_before_s = busy_s()
        self._start_s = time.perf_counter()

    def stop(self) -> Spent:
        elapsed_s = time.perf_counter() - self._start_s
        busy = busy_s() - self._busy_before_s
        cpu = {role: after_s - self._cpu_before[role] for role, after_s in self._cpu_s().items()}
        foreign = max(0.0, busy - sum(cpu.values())) / (elapsed_s * CORES)
        return Spent(elapsed_s=elapsed_s, cpu_s=cpu, foreign_percent=100 * foreign)

    def _cpu_s(self) -> dict[str, float]:
        return {role: sum(map(cpu_s, pids)) for role, pids in self._roles.items()}
