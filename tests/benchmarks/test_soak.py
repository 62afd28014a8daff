"""The frontend's memory and descriptors do not grow with the requests it has served."""

from pathlib import Path

import pytest

from benchmarks.prompt import build_prompt
from benchmarks.soak import GROWTH_MAX_MIB, MORE_DESCRIPTORS_MAX, growth_mib, more_descriptors, soak


@pytest.mark.alone
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("requests", "tokens"), [(200_000, 4), (2_000, 2_000)], ids=["short", "long"])
def test_nothing_grows(model_dir: Path, requests: int, tokens: int) -> None:
    sizes = list(soak(requests, tokens, model_dir, build_prompt(model_dir, 100)))
    assert sizes[-1].requests == requests
    assert growth_mib(sizes) < GROWTH_MAX_MIB, sizes
    assert more_descriptors(sizes) <= MORE_DESCRIPTORS_MAX, sizes
