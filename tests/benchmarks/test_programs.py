import os

import msgspec
import pytest

from benchmarks.programs import BenchmarkError, programs


class Job(msgspec.Struct):
    """Any."""


def test_a_program_that_cannot_start_says_why() -> None:
    with programs() as started:
        started.start("server", "benchmarks.no_such_module")

        with pytest.raises(BenchmarkError, match=r"the server did not start:\n.*no_such_module"):
            started.wait_until_ready("server")


def test_a_load_generator_that_fails_says_why() -> None:
    with programs() as started, pytest.raises(BenchmarkError, match="no_such_module"):
        started.drive("benchmarks.no_such_module", Job(), Job, timeout_s=10)


def test_no_program_outlives_the_block() -> None:
    with programs() as started:
        pid = started.start("server", "benchmarks.rpc_service")
        os.kill(pid, 0)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_load_generator_that_gives_no_result_says_so() -> None:
    with programs() as started, pytest.raises(BenchmarkError, match=r"this gave \d+ bytes of no use"):
        started.drive("this", Job(), Job, timeout_s=10)
