"""The keys that the configuration names."""

import logging
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.frontend.api_keys import read_key_file, split_keys
from dynamo.frontend.key_ring import Anybody, KeyRing, Keys
from dynamo.frontend.watched_file import WatchedFile

API_KEYS_VARIABLE = "DYN_API_KEYS"  # no flag: every user of a host can read the command lines of the others

logger = logging.getLogger(__name__)


def load_keys(file: str | None, keys: str | None) -> Keys:
    """Those of the file, or those listed in the text; anybody may come in where neither is given.

    A file that changes is read again within a second, at the next request. If it cannot be used then, the keys stay as
    they are. Raises ConfigError.
    """
    if file and keys:
        raise ConfigError(f"--api-keys-file and {API_KEYS_VARIABLE} exclude each other")
    if keys:
        return KeyRing(split_keys(keys))
    if not file:
        return Anybody()
    watched = WatchedFile(Path(file))
    return KeyRing(read_key_file(watched.path), lambda ring: _refresh(ring, watched))


def _refresh(ring: KeyRing, watched: WatchedFile) -> None:
    if not watched.changed():
        return
    try:
        entries = read_key_file(watched.path)
    except ConfigError as error:
        logger.error("the API keys stay as they were: %s", error)
        return
    ring.use(entries)
    logger.info("read %d API keys anew", len(entries))
