"""A profile from a file."""

from pathlib import Path

import msgspec

from dynamo.errors import ConfigError
from dynamo.planner.profile import Profile


def read_profile(path: Path) -> Profile:
    """Raises ConfigError for a file that is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise ConfigError(f"the profile {path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no profile, as `dynamo profile` writes it: {error}") from error
