from pathlib import Path
from typing import Any

import pytest

from dynamo.config import build_parser, from_namespace
from dynamo.errors import ConfigError
from dynamo.kvbm.config import KvbmOptions, ServiceConfig
from dynamo.protocols.kvbm import PoolOptions


def parsed(*flags: str, **environ: str) -> KvbmOptions:
    return from_namespace(KvbmOptions, build_parser(KvbmOptions, prog="t").parse_args(flags), environ=environ)


def test_without_flags_there_is_no_block_manager() -> None:
    assert not parsed().is_enabled


def test_what_an_engine_asks_for() -> None:
    options = parsed("--kvbm-host-gb", "1.5", "--kvbm-disk-gb", "2", "--kvbm-disk-dir", "/d", "--kvbm-policy", "lru")
    assert options.is_enabled
    expected = PoolOptions(host_bytes=1_500_000_000, disk_bytes=2_000_000_000, disk_dir="/d", policy="lru")
    assert options.pool_options() == expected


def test_a_directory_means_the_same_in_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    options = KvbmOptions(host_gb=1, disk_gb=1, disk_dir="d")
    assert options.pool_options().disk_dir == str(tmp_path / "d")


def test_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/me")
    monkeypatch.delenv("DYN_KVBM_SOCKET", raising=False)
    assert parsed().socket_path == ServiceConfig().socket_path == Path("/run/me/dynamo/kvbm.sock")
    assert parsed(DYN_KVBM_SOCKET="/s").socket_path == Path("/s")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"host_gb": 1, "disk_gb": 1}, "belong together"),
        ({"host_gb": 1, "disk_dir": "/d"}, "belong together"),
        ({"disk_gb": 1, "disk_dir": "/d"}, "need --kvbm-host-gb"),
        ({"peers": True}, "need --kvbm-host-gb"),
        ({"object_url": "s3://b/p"}, "need --kvbm-host-gb"),
        ({"host_gb": 1, "object_url": "bucket/prefix"}, "is a URL"),
        ({"host_gb": 1, "object_url": "s3://"}, "needs a bucket"),
        ({"host_gb": 1, "object_url": "s3:///prefix"}, "needs a bucket"),
        ({"host_gb": 1, "object_url": "nonsense://bucket"}, "knows no nonsense"),
        ({"host_gb": 1, "object_url": "file://relative"}, "absolute directory"),
        ({"host_gb": 1, "object_url": "s3://me:hush@bucket/prefix"}, "no credentials"),
        ({"host_gb": 1, "object_url": "az://account/c?sig=hush"}, "no credentials"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as raised:
        KvbmOptions(**options)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    "flags",
    [
        ("--kvbm-host-gb", "-1"),
        ("--kvbm-host-gb", "1e300"),
        ("--kvbm-disk-gb", "1e12"),
        ("--kvbm-onboard-timeout-ms", "9" * 30),
        ("--kvbm-policy", "fifo"),
        ("--kvbm-linger", "nan"),
    ],
)
def test_what_no_flag_takes(flags: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        parsed(*flags)
