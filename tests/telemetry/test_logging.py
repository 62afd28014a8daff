"""What a process writes to stderr, seen from outside: logging belongs to the whole process."""

import re
import subprocess
import sys

import msgspec
import pytest

PROGRAM = """
import logging
from dynamo.telemetry.logging import configure
configure()
configure()  # twice must not mean double lines
for name in ("dynamo.runtime.client", "dynamo.router.kv", "other"):
    logger = logging.getLogger(name)
    logger.debug("debug of %s", name)
    logger.info("info of %s", name)
    logger.warning("warning of %s", name)
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("dynamo").exception("it %s", "broke")
"""


def lines(**env: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_default_level() -> None:
    text = lines()
    assert any("INFO    dynamo.runtime.client: info of dynamo.runtime.client" in line for line in text)
    assert not any("debug of" in line or "info of other" in line for line in text)
    assert sum("warning of other" in line for line in text) == 1
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO ", text[0])
    assert any("ZeroDivisionError" in line for line in text)


@pytest.mark.parametrize("setting", ["error,dynamo.router=debug", "ERROR,dynamo::router=trace"])
def test_levels_of_modules(setting: str) -> None:
    text = lines(DYN_LOG=setting)
    assert any("debug of dynamo.router.kv" in line for line in text)
    assert not any("of dynamo.runtime.client" in line for line in text)


def test_off() -> None:
    assert [line for line in lines(DYN_LOG="off") if " of other" not in line] == []


def test_wrong_setting_is_a_warning() -> None:
    text = lines(DYN_LOG="loud")
    assert "'loud' is not a level" in text[0]
    assert any("info of dynamo.router.kv" in line for line in text)


def test_json_lines() -> None:
    entries = [msgspec.json.decode(line) for line in lines(DYN_LOGGING_JSONL="1")]
    assert entries[0]["level"] == "INFO"
    assert entries[0]["target"] == "dynamo.runtime.client"
    assert entries[0]["message"] == "info of dynamo.runtime.client"
    assert entries[0]["time"].endswith("Z")
    assert "ZeroDivisionError" in entries[-1]["exception"]


def test_lines_stay_the_same_without_origins() -> None:
    program = PROGRAM.replace("import configure\n", "import configure, leave_out_origins\nleave_out_origins()\n")
    without = subprocess.run([sys.executable, "-c", program], env={}, capture_output=True, text=True, check=True)
    assert [line.split(" ", 1)[1] for line in without.stderr.splitlines() if line.startswith("20")] == [
        line.split(" ", 1)[1] for line in lines() if line.startswith("20")
    ]
