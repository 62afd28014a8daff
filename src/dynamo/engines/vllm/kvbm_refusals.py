"""Why an engine's process cannot have the block manager: it leaves that where the worker which has started it looks.

vLLM itself tells the worker no more than that its process has ended.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dynamo.engines.vllm.kvbm_settings import KvbmSettings
from dynamo.errors import ConfigError


@contextlib.contextmanager
def refusals_left(settings: KvbmSettings) -> Iterator[None]:
    """In the engine's process: a ConfigError in here is left for take_refusal(), and raised."""
    try:
        yield
    except ConfigError as error:
        with contextlib.suppress(OSError):  # the log has it
            _path(settings).write_text(str(error))
        raise


def take_refusal(settings: KvbmSettings | None) -> str | None:
    """In the worker: the reason, if there was one, for once."""
    if settings is None:
        return None
    path = _path(settings)
    try:
        reason = path.read_text()
    except OSError:
        return None
    path.unlink(missing_ok=True)
    return reason


def _path(settings: KvbmSettings) -> Path:
    """Beside the block manager's socket, where nobody else may write."""
    return Path(settings.socket).with_name(f"{settings.owner}.refusal")
