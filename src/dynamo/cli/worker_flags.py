"""Command lines of two parts: a command's own, and what is for those whom it starts."""

from collections.abc import Sequence


def split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first `--`, and what follows it."""
    argv = list(argv)
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]
