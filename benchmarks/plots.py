"""What `--plot` needs."""

import importlib.util
from pathlib import Path

from dynamo.errors import ConfigError


def check_plot(path: Path | None) -> None:
    """To be asked before minutes of measuring; ConfigError where `path`, if there is one, could not be drawn to."""
    if path is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install -e '.[plot]'")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot: there is no directory {path.absolute().parent}")
