"""How much memory this process could still take."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # version 1 says a number about that large


def available_memory_bytes(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """What the machine could give to new programs without swapping, as far as the limits of our cgroups go."""
    return max(0, min(_machine_bytes(proc), *_cgroup_bytes(proc, cgroups)))


def _machine_bytes(proc: Path) -> int:
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo does not say how much memory is available")


def _cgroup_bytes(proc: Path, cgroups: Path) -> Iterator[int]:
    """What is left in each cgroup that has a limit; without cgroups one that never counts."""
    yield _NO_LIMIT
    try:
        memberships = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _left(cgroups, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _left(cgroups / "memory", path, *names)


def _left(root: Path, path: str, limit_file: str, usage_file: str, reclaimable: str) -> Iterator[int]:
    """Of a cgroup and of all above it, which limit it too. In a container only some of them can be seen."""
    inside = PurePosixPath(path.lstrip("/"))
    for directory in (root / inside, *(root / parent for parent in inside.parents)):
        try:
            limit = (directory / limit_file).read_text().strip()
            usage = int((directory / usage_file).read_text())
            stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit != "max" and int(limit) < _NO_LIMIT:
            yield int(limit) - usage + int(stat.get(reclaimable, 0))  # cached files make room
