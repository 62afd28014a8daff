from pathlib import Path

import pytest

from dynamo.runtime.free_memory import available_memory_bytes


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4000 kB\n")
    return proc


def limit(cgroup: Path, files: dict[str, str]) -> None:
    cgroup.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (cgroup / name).write_text(text + "\n")


def test_there_is_memory() -> None:
    assert available_memory_bytes() > 1 << 20


def test_without_limits_it_is_the_machines(proc: Path, tmp_path: Path) -> None:
    assert available_memory_bytes(proc, tmp_path / "none") == 4000 * 1024
    (proc / "self/cgroup").write_text("0::/a\n")
    limit(tmp_path / "c/a", {"memory.max": "max", "memory.current": "5", "memory.stat": "inactive_file 0"})
    assert available_memory_bytes(proc, tmp_path / "c") == 4000 * 1024


def test_the_smallest_limit_above_us_counts(proc: Path, tmp_path: Path) -> None:
    (proc / "self/cgroup").write_text("0::/a/b\n")
    inner = {"memory.max": "900000", "memory.current": "100000", "memory.stat": "anon 1\ninactive_file 50000"}
    limit(tmp_path / "c/a/b", inner)
    assert available_memory_bytes(proc, tmp_path / "c") == 850_000, "cached files make room"
    limit(tmp_path / "c/a", {"memory.max": "500000", "memory.current": "600000", "memory.stat": "inactive_file 0"})
    assert available_memory_bytes(proc, tmp_path / "c") == 0


def test_the_first_version_of_cgroups(proc: Path, tmp_path: Path) -> None:
    (proc / "self/cgroup").write_text("3:cpu:/x\n2:memory:/a\n")
    files = {"memory.limit_in_bytes": "700", "memory.usage_in_bytes": "200", "memory.stat": "total_inactive_file 100"}
    limit(tmp_path / "c/memory/a", files)
    assert available_memory_bytes(proc, tmp_path / "c") == 600
