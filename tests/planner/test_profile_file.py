"""Profiles on disk, and what is none."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given

from dynamo.errors import ConfigError
from dynamo.planner.profile import Profile
from dynamo.planner.profile_file import check_profile, read_profile, write_profile

from .profiles import PROFILES, profile_of

SMALL = profile_of({100: (0.1, 1000.0), 300: (0.2, 1500.0)}, {(1000, 1): 0.01, (1000, 2): 0.02, (2000, 1): 0.02})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.json", SMALL)
    assert read_profile(tmp_path / "p.json") == SMALL


@given(profile=PROFILES)
def test_profiles_are_usable(profile: Profile) -> None:
    check_profile(profile)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json cannot be read: No such file"):
        read_profile(tmp_path / "absent.json")


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write_profile(tmp_path / "no" / "p.json", SMALL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a profile"),
        (b"\xff\xfe", "is not a profile"),
        (b"[]", "is not a profile"),
        (b"{}", "missing required field"),
        (b'{"version": 2, "anything": true}', "version 2, and this knows version 1"),
        (b'{"version": "one"}', "is not a profile"),
        (b'{"anything": ' + b"[" * 100_000, "is not a profile"),
        (msgspec.json.encode(SMALL)[:-20], "is not a profile"),
    ],
)
def test_other_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_profile(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefill": []}, "at least one point"),
        ({"decode": []}, "at least one point"),
        ({"prefill": [*SMALL.prefill][::-1]}, "prefill must ascend"),
        ({"decode": [*SMALL.decode][::-1]}, "decode must ascend"),
        ({"decode": [SMALL.decode[0], SMALL.decode[0]]}, "decode must ascend"),
        ({"prefill": [{"prompt_tokens": 0, "ttft_s": 1, "tokens_per_s": 1}]}, "at least 1"),
        ({"prefill": [{"prompt_tokens": 1, "ttft_s": 0, "tokens_per_s": 1}]}, "more than 0"),
        ({"prefill": [{"prompt_tokens": 1, "ttft_s": 1, "tokens_per_s": -1}]}, "more than 0"),
        ({"prefill": [{"prompt_tokens": 1, "ttft_s": None, "tokens_per_s": 1}]}, "is not a profile"),
        ({"max_kv_tokens": 0}, "max_kv_tokens"),
    ],
)
def test_profiles_that_could_not_be_interpolated(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(SMALL) | change))
    with pytest.raises(ConfigError, match=message):
        read_profile(path)


HUGE = b"9" * 400


@pytest.mark.parametrize(
    ("field", "number"),
    [
        (b"ttft_s", b"1e999"),
        (b"prompt_tokens", HUGE),
        (b"context_tokens", HUGE),
        (b"concurrency", HUGE),
    ],
)
def test_numbers_too_large_for_a_float(field: bytes, number: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    content, count = re.subn(b'"%b":[^,}]+' % field, b'"%b":%b' % (field, number), msgspec.json.encode(SMALL), count=1)
    assert count == 1
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        read_profile(path)


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="finite"):
        write_profile(tmp_path / "p.json", profile_of({1: (float("inf"), 1.0)}, {(1, 1): 1.0}))
