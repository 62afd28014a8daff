import os
import subprocess
import sys

from benchmarks.process_tree import cpu_s, pss_mib

BUSY_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
sys.stdout.buffer.write(child.stdout.readline())
sys.stdout.flush()
sys.stdin.read()
"""
BUSY_CHILD = """
import sys, time
while time.process_time() < 0.2: pass
memory = bytes(range(256)) * (50 << 12)
print("done", flush=True)
sys.stdin.read()
"""


def test_descendants_count() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY_PARENT, BUSY_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"done\n"

        assert 0.2 < cpu_s(parent.pid) < 5
        assert 50 < pss_mib(parent.pid) < 200
        assert cpu_s(os.getpid()) > cpu_s(parent.pid)
        parent.communicate()


def test_a_process_that_is_gone_counts_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()

    assert cpu_s(process.pid) == 0
    assert pss_mib(process.pid) == 0
