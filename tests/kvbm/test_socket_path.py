import os
import socket
from pathlib import Path

import pytest

from dynamo.errors import AuthenticationError, ConfigError, ConnectionLostError
from dynamo.kvbm.socket_path import check_peer, connect, default_socket, private_place
from dynamo.runtime.user_directory import user_directory


def test_where_it_is() -> None:
    assert default_socket({"DYN_KVBM_SOCKET": "/a/b", "XDG_RUNTIME_DIR": "/run/me"}) == Path("/a/b")
    assert default_socket({"XDG_RUNTIME_DIR": "/run/me"}) == Path("/run/me/dynamo/kvbm.sock")
    assert default_socket({}) == user_directory() / "kvbm.sock"


def test_a_directory_is_made_for_us_alone(tmp_path: Path) -> None:
    private_place(tmp_path / "new" / "s")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    private_place(tmp_path / "new" / "s")


def test_a_directory_that_others_could_put_something_into(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to("/")
    (tmp_path / "file").touch()
    for name in ("open", "link", "file"):
        with pytest.raises(ConfigError):
            private_place(tmp_path / name / "s")


def test_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long"):
        private_place(tmp_path / ("x" * 110))


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """Whoever listens there would remove it first."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "file", tmp_path / "directory", Path("/")):
        with pytest.raises(ConfigError, match="no socket"):
            private_place(path)


def test_another_users_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here, there = socket.socketpair()
    with here, there:
        check_peer(here)
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(AuthenticationError):
            check_peer(here)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLostError, match="no block manager"):
        connect(tmp_path / "s", 1.0)
