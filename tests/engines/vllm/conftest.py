"""What vLLM leaves behind when it has run in the tests' own process."""

import gc
import warnings

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure() -> None:
    """vLLM never closes its ZeroMQ context: what pytest would find last of all, and report as an error, goes here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unclosed context", ResourceWarning)
        gc.collect()
