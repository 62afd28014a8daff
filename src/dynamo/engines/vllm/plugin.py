"""What each of vLLM's processes does first: vLLM calls it as a plugin, registered in pyproject.toml."""

import os

from dynamo.engines.vllm.environment import apply_log_level
from dynamo.engines.vllm.ownership import follow_owner


def on_start() -> None:
    """Changes nothing in other programs that happen to have this package installed."""
    follow_owner()
    apply_log_level(os.environ)
