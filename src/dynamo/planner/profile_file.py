"""A profile on disk: JSON."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from dynamo.errors import ConfigError
from dynamo.planner.profile import VERSION, Profile

_LARGEST = 10**12  # tokens or requests: more are a mistake


class _Versioned(msgspec.Struct):
    version: int = VERSION


def read_profile(path: Path) -> Profile:
    """Raises ConfigError for a file that cannot be read, or that holds no profile that could be interpolated."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the profile {path} cannot be read: {error.strerror}") from error
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
        if version != VERSION:
            raise ConfigError(f"the profile {path} has version {version}, and this knows version {VERSION}")
        profile = msgspec.json.decode(data, type=Profile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a profile: {error}") from error
    try:
        check_profile(profile)
    except ConfigError as error:
        raise ConfigError(f"the profile {path} cannot be used: {error}") from error
    return profile


def write_profile(path: Path, profile: Profile) -> None:
    """Raises ConfigError for a profile that could not be used, and where nothing can be written."""
    check_profile(profile)
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(profile)) + b"\n")
    except OSError as error:
        raise ConfigError(f"the profile {path} cannot be written: {error.strerror}") from error


def check_profile(profile: Profile) -> None:
    """Raises ConfigError when points are missing, out of order, or not of this world."""
    if not profile.prefill or not profile.decode:
        raise ConfigError("it needs at least one point of prefill and one of decode")
    _check_ascending("prefill", [(point.prompt_tokens,) for point in profile.prefill])
    _check_ascending("decode", [(point.context_tokens, point.concurrency) for point in profile.decode])
    if profile.max_kv_tokens is not None and not _is_number(profile.max_kv_tokens):
        raise ConfigError(f"max_kv_tokens must be at least 1, and at most {_LARGEST:g}")
    times = [value for point in profile.prefill for value in (point.ttft_s, point.tokens_per_s)]
    times += [value for point in profile.decode for value in (point.itl_s, point.tokens_per_s)]
    if not all(0 < value < math.inf for value in times):
        raise ConfigError("times and rates must be finite and more than 0")


def _is_number(number: int) -> bool:
    return 1 <= number <= _LARGEST


def _check_ascending(kind: str, places: Sequence[tuple[int, ...]]) -> None:
    if not all(_is_number(number) for place in places for number in place):
        raise ConfigError(f"lengths and numbers of requests must be at least 1, and at most {_LARGEST:g} ({kind})")
    if any(left >= right for left, right in pairwise(places)):
        raise ConfigError(f"the points of {kind} must ascend")
