"""What tests of several packages need."""

from pathlib import Path

import pytest

from dynamo.llm.model_source import resolve_model

pytest.register_assert_rewrite("dynamo.testing")


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct as a model directory, weights included."""
    return resolve_model("smollm2", weights=True)
