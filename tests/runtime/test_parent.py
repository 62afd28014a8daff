"""Processes that end with the one that started them."""

import signal

from dynamo.runtime.parent import follow_parent
from dynamo.testing import eventually, program

CHILD = """
import os, signal
from dynamo.runtime.parent import follow_parent
follow_parent()
print("following", os.getpid(), "DYN_PARENT_PID" in os.environ, flush=True)
signal.pause()
"""
PARENT = f"""
import os, subprocess, sys, time
variable = {{"DYN_PARENT_PID": sys.argv[1] if len(sys.argv) > 1 else str(os.getpid())}}
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=os.environ | variable)
print("started", child.pid, flush=True)
sys.exit(child.wait())
"""


def test_nobody_asked() -> None:
    environ = {"OTHER": "1"}
    follow_parent(environ)
    assert environ == {"OTHER": "1"}


async def test_killed_parent() -> None:
    async with program(["-c", PARENT]) as parent:
        _, pid, inherits = (await parent.line("following")).split()
        assert inherits == "False"  # what the child starts has another parent
        parent.signal(signal.SIGKILL)
        await eventually(lambda: not is_running(int(pid)))


async def test_parent_that_is_dead_already() -> None:
    async with program(["-c", PARENT, "1"]) as parent:  # the child's parent is not the one that asked
        assert await parent.exit_code() == 1
    assert "the process that started this one (1) is gone" in parent.output


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
