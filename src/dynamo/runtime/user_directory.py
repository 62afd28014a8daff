"""Where processes of one user on one host find each other."""

import os
import tempfile
from pathlib import Path


def user_directory() -> Path:
    """Named after this user; who uses it makes it, and makes sure that it is theirs."""
    return Path(tempfile.gettempdir()) / f"dynamo-{os.getuid()}"
