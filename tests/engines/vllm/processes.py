"""Watching other processes without polling."""

import os
import select
import signal
import time
from pathlib import Path

from dynamo.engines.vllm.ownership import descendants


def engine_processes() -> list[int]:
    """The processes of this one that vLLM has named."""
    return [pid for pid in descendants(os.getpid()) if "EngineCor" in Path(f"/proc/{pid}/comm").read_text()]


def kill_and_wait(pid: int, others: list[int], *, timeout_s: float) -> list[int]:
    """Sends `pid` SIGKILL; those of `others` that are still there `timeout_s` later."""
    watched = {os.pidfd_open(other): other for other in others}
    poller = select.poll()
    for descriptor in watched:
        poller.register(descriptor, select.POLLIN)  # readable once the process has ended
    os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + timeout_s
    while watched and (remaining_s := deadline_s - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(remaining_s * 1000):
            poller.unregister(descriptor)
            os.close(descriptor)
            del watched[descriptor]
    return list(watched.values())
