"""Where the block manager's service listens, and who may be at the other end."""

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Mapping
from pathlib import Path

from dynamo.errors import AuthenticationError, ConfigError, ConnectionLostError
from dynamo.runtime.user_directory import user_directory

SOCKET_VARIABLE = "DYN_KVBM_SOCKET"
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_PATH_BYTES_MAX = 107  # of sockaddr_un


def default_socket(environ: Mapping[str, str] = os.environ) -> Path:
    """Of this user, on this host."""
    if named := environ.get(SOCKET_VARIABLE):
        return Path(named)
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "dynamo" / "kvbm.sock"
    return user_directory() / "kvbm.sock"


def private_place(path: Path) -> None:
    """Sees to it that a socket can be made at `path`: makes its directory if there is none.

    Raises ConfigError when others could put something of theirs there: the directory has to be ours, and ours alone to
    write to. Also when something else than a socket is there, which whoever listens would remove.
    """
    if len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise ConfigError(f"{path} is too long for a socket: at most {_PATH_BYTES_MAX} bytes")
    directory = path.parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat(follow_symlinks=False)
    except OSError as error:
        raise ConfigError(f"there is no directory {directory} for a socket: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ConfigError(f"{directory} has to be a directory of this user, that no other may write to")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ConfigError(f"{path} is there already, and is no socket")


def check_peer(sock: socket.socket) -> None:
    """Raises AuthenticationError when the other end is another user's."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    if uid != os.getuid():
        raise AuthenticationError(f"the other end of the block manager's socket belongs to user {uid}")


def connect(path: Path, timeout_s: float) -> socket.socket:
    """A connection to the service at `path`, if there is one that accepts. Raises ConnectionLostError otherwise."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout_s)  # 0: at once, or not at all
        sock.connect(str(path))
        check_peer(sock)
    except (OSError, AuthenticationError) as error:
        sock.close()
        raise ConnectionLostError(f"no block manager at {path}: {error}") from error
    return sock
