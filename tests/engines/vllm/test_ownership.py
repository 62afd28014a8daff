import ctypes
import os
import subprocess
import sys

import pytest

from dynamo.engines.vllm.ownership import descendants, follow_owner, kill_tree

from .processes import kill_and_wait

CHILD = (
    "import time\n"
    "from dynamo.engines.vllm.ownership import follow_owner\n"
    "follow_owner()\n"
    "print('running', flush=True)\n"
    "time.sleep(60)\n"
)
OWNER = (
    "import subprocess, sys\n"
    "from dynamo.engines.vllm.ownership import own_children\n"
    "own_children()\n"
    f"subprocess.run([sys.executable, '-c', {CHILD!r}])\n"
)


def test_a_child_dies_with_its_killed_owner() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "running\n"
        children = descendants(owner.pid)
        assert len(children) == 1

        assert kill_and_wait(owner.pid, children, timeout_s=2) == []


def test_a_child_whose_owner_died_before_dies_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait(timeout=30)
    monkeypatch.setenv("DYN_VLLM_OWNER_PID", str(gone.pid))

    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, timeout=30, check=False)

    assert (child.returncode, child.stdout) == (-9, b"")


@pytest.mark.parametrize("owned", [False, True])
def test_nothing_happens_to_the_owner_and_to_strangers(owned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYN_VLLM_OWNER_PID", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: pytest.fail("prctl was called"))
    if owned:
        monkeypatch.setenv("DYN_VLLM_OWNER_PID", str(os.getpid()))

    follow_owner()


def test_kill_tree_takes_all_below() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()

        kill_tree(owner.pid)

        assert owner.wait(timeout=2) == -9
        assert owner.stdout.read() == ""  # the child has gone too: the pipe is closed


def test_descendants_of_a_process_that_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait(timeout=30)

    assert descendants(gone.pid) == []
