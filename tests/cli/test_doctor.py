"""`dynamo doctor` on a host that is fit, and on ones that are not."""

import fcntl
import socket
import sys
from pathlib import Path

import pytest

from dynamo.cli.main import main
from dynamo.router.kernel import KERNEL
from dynamo.testing.etcd_server import ETCD, EtcdServer


def test_all_is_well(discovery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heavy = {"vllm", "torch"} - sys.modules.keys()
    assert main(["doctor", "--file-kv", str(discovery)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok    ") for line in lines)
    assert [line[6:].partition(":")[0] for line in lines] == [
        "versions",
        "extras",
        "router kernel",
        "discovery",
        "Unix sockets",
    ]
    assert f"{KERNEL.name} ({KERNEL.reason})" in lines[2]
    assert list(discovery.iterdir()) == []
    assert not heavy & sys.modules.keys()


def test_directory_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path / "of the environment"))
    assert main(["doctor"]) == 0
    assert "of the environment" in capsys.readouterr().out


def test_without_a_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--discovery-backend", "mem"]) == 0
    assert "discovery" not in capsys.readouterr().out


@pytest.mark.skipif(ETCD is None, reason="there is no etcd here")
def test_etcd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with EtcdServer(tmp_path) as server:
        assert main(["doctor", "--discovery-backend", "etcd", "--etcd-endpoints", server.url]) == 0
    assert f"ok    discovery: etcd at {server.url} takes entries" in capsys.readouterr().out


def test_address_without_etcd(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--discovery-backend", "etcd", "--etcd-endpoints", "localhost:2379"]) == 1
    assert "FAIL  discovery: an endpoint of etcd is written" in capsys.readouterr().out


def test_unusable_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["doctor", "--file-kv", str(tmp_path / "file")]) == 1
    out = capsys.readouterr().out
    assert "FAIL  discovery: cannot use the discovery directory" in out
    assert "ok    Unix sockets" in out  # the rest is said all the same


def test_locks_that_hold_nobody_off(
    discovery: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert main(["doctor", "--file-kv", str(discovery)]) == 1
    assert "FAIL  discovery: locks on files in" in capsys.readouterr().out


def test_no_unix_sockets(discovery: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert main(["doctor", "--file-kv", str(discovery)]) == 1
    assert "FAIL  Unix sockets: not here" in capsys.readouterr().out
