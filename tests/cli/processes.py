"""Looking at processes from outside."""

from contextlib import suppress
from pathlib import Path


def children(pid: int) -> dict[int, str]:
    """The processes that `pid` has started, and their command lines."""
    try:
        pids = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children_of(task)]
        return {child: Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode() for child in pids}
    except FileNotFoundError:  # one of them has just ended
        return children(pid) if is_running(pid) else {}


def processes_with(setting: str) -> list[int]:
    """Those that were started with `setting`, as NAME=value, in their environment."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            with suppress(OSError):  # gone, or not ours
                if setting.encode() in (directory / "environ").read_bytes().split(b"\0"):
                    found.append(int(directory.name))
    return found


def is_running(pid: int) -> bool:
    """False for zombies too, whose parent has not looked at them yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _children_of(task: Path) -> list[str]:
    return (task / "children").read_text().split()
