"""Whether a path still leads to the file that one has open."""

import os
from pathlib import Path


def is_file_of(path: Path, descriptor: int) -> bool:
    """False when the file was removed, or another one put in its place; a symbolic link is another one."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False
