"""The frontend's memory does not grow with the requests it has served."""

from pathlib import Path

import pytest

from benchmarks.prompt import build_prompt
from benchmarks.soak import GROWTH_MAX_MIB, growth_mib, soak

REQUESTS = 100_000


@pytest.mark.alone
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_over_many_requests(model_dir: Path) -> None:
    sizes_mib = [size_mib for _, size_mib in soak(REQUESTS, model_dir, build_prompt(model_dir, 100))]

    assert len(sizes_mib) == 10
    assert growth_mib(sizes_mib) < GROWTH_MAX_MIB, sizes_mib
