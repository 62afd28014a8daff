import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from dynamo.errors import ConfigError
from dynamo.llm.model_cache import cache_dir, exclusive, staging
from dynamo.llm.progress import SilentProgress

_HOLD_THE_LOCK = """
import sys
from pathlib import Path
from dynamo.llm.model_cache import exclusive, staging
from dynamo.llm.progress import SilentProgress
folder = Path(sys.argv[1])
with exclusive(folder, progress=SilentProgress(), timeout_s=10), staging(folder):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_own_variable_wins_over_the_shared_one_over_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DYN_CACHE_DIR", raising=False)
    assert cache_dir() == Path("/home/someone/.cache/dynamo")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert cache_dir() == Path("/fast/dynamo")
    monkeypatch.setenv("DYN_CACHE_DIR", "relative")
    assert cache_dir() == Path.cwd() / "relative"


@pytest.mark.parametrize("cache", ["", "~/cache"])
def test_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    def nobody(uid: int) -> NoReturn:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("DYN_CACHE_DIR", cache)
    with pytest.raises(ConfigError, match="DYN_CACHE_DIR"):
        cache_dir()


def test_one_process_at_a_time_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD_THE_LOCK, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with (
            pytest.raises(ConfigError, match="another process"),
            exclusive(tmp_path, progress=SilentProgress(), timeout_s=0),
        ):
            pass
        holder.kill()
    assert len(list(tmp_path.glob(".staging-*"))) == 1
    with exclusive(tmp_path, progress=SilentProgress(), timeout_s=0), staging(tmp_path) as work:
        assert list(tmp_path.glob(".staging-*")) == [work]
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
