"""Flags, the file that may stand for them, and the environment."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from dynamo.errors import ConfigError
from dynamo.planner.process_config import PlannerConfig, planner_config


def config(path: Path, text: str, *flags: str, environ: Mapping[str, str] | None = None) -> PlannerConfig:
    path.write_text(text)
    return planner_config(["--config", str(path), *flags], environ or {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "planner.yaml"


def test_without_a_file() -> None:
    made = planner_config(["--ttft-ms", "300", "--advisory"], {"DYN_NAMESPACE": "n"})
    assert (made.planner.ttft_ms, made.planner.advisory, made.namespace) == (300, True, "n")


def test_all_kinds_of_values(path: Path) -> None:
    text = "ttft-ms: 300\nmax_workers: 8\nadvisory: true\nconvert-roles: no\ngpu-budget:\nnamespace: prod\nmode: load\n"
    made = config(path, text)
    options = made.planner
    assert (options.ttft_ms, options.max_decode_workers, options.advisory) == (300, 8, True)
    assert (options.convert_roles, options.gpu_budget, made.namespace, options.mode) == (False, None, "prod", "load")


def test_which_one_wins(path: Path) -> None:
    environ = {"DYN_NAMESPACE": "environment", "DYN_SYSTEM_PORT": "1"}
    made = config(path, "namespace: file\nttft-ms: 300\nitl-ms: 20\n", "--ttft", "200", environ=environ)
    assert (made.planner.ttft_ms, made.planner.itl_ms) == (200, 20)
    assert (made.namespace, made.system_port) == ("file", 1)


def test_a_flag_takes_back_what_the_file_says(path: Path) -> None:
    assert not config(path, "advisory: true\n", "--no-advisory").planner.advisory


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file(path: Path, text: str) -> None:
    assert config(path, text) == planner_config(["--config", str(path)], {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ttft-sm: 300\n", "there is no 'ttft-sm'; is 'ttft-ms' meant?"),
        ("zzzz: 300\n", "there is no 'zzzz'"),
        ("config: other.yaml\n", "there is no 'config'"),
        ("advisory: 1\n", "advisory is true or false, not 1"),
        ("advisory: maybe\n", "advisory is true or false, not 'maybe'"),
        ("ttft-ms: true\n", "ttft-ms is a value, not True"),
        ("ttft-ms: [1]\n", "ttft-ms is a value, not [1]"),
        ("ttft-ms: {a: 1}\n", "ttft-ms is a value, not {'a': 1}"),
        ("ttft-ms: 2020-01-01\n", "ttft-ms is a value, not datetime.date"),
        ("1: 2\n", "is not YAML with one"),
        ("- ttft-ms\n", "is not YAML with one"),
        ("a: b: c\n", "is not YAML with one"),
        ("model-name: 2024-13-45\n", "is not YAML with one"),
        ("model-name: !!timestamp soon\n", "is not YAML with one"),
        ("ttft-ms: !!int many\n", "is not YAML with one"),
        (f"max-workers: {'9' * 5000}\n", "is not YAML with one"),
        ("min-workers: 9\nmax-workers: 8\n", "--min-decode-workers 9 is more than"),
        ("ttft-ms: !!python/object/apply:os.getpid []\n", "is not YAML with one"),
    ],
)
def test_wrong_files(path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(path, text)
    assert reason in str(refused.value)


def test_no_file(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        planner_config(["--config", str(path)], {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ttft-ms: -1\n", "at least 0.001"),
        ("ttft-ms: .nan\n", "nan is not a number of at least 0.001"),
        ("itl-ms: .inf\n", "inf is not a number"),
        ("interval-s: 1e300\n", "at most 86400"),
        ("min-workers: 2.5\n", "'2.5' is not a whole number"),
        (f"max-workers: {10**400}\n", "at most 1e+06"),
        ("mode: fast\n", "'fast' is not one of load, throughput, both"),
    ],
)
def test_wrong_values_are_said_in_the_files_name(path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(path, text)
    assert str(refused.value).startswith(f"{path}: argument --")
    assert reason in str(refused.value)


def test_file_and_flags_may_be_right_only_together(path: Path) -> None:
    assert config(path, "max-workers: 20\n", "--min-workers", "15").planner.min_decode_workers == 15
