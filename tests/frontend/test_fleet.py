"""Whether all workers are busy."""

from typing import Any

import pytest

from dynamo.frontend.fleet import Report, all_busy
from dynamo.frontend.overload_config import OverloadConfig
from dynamo.protocols.load import WorkerLoad
from dynamo.runtime.instance import Instance
from dynamo.runtime.request_plane.base import Address

CONFIG = OverloadConfig(active_decode_blocks_threshold=0.8, active_prefill_tokens_threshold=100)
FULL = WorkerLoad(kv_used_blocks=81, kv_total_blocks=100, prefill_tokens=0)
LATE = WorkerLoad(kv_total_blocks=100, prefill_tokens=101)
FREE = WorkerLoad(kv_used_blocks=80, kv_total_blocks=100, prefill_tokens=100)
SILENT = WorkerLoad()


def instance(instance_id: int, component: str = "backend") -> Instance:
    return Instance(namespace="n", component=component, endpoint="generate", instance_id=instance_id, address=Address())


def busy(*workers: list[WorkerLoad] | None, config: OverloadConfig = CONFIG, now_s: float = 0.0) -> bool:
    reports = {i: Report(ranks=ranks, at_s=0.0) for i, ranks in enumerate(workers) if ranks is not None}
    return all_busy([instance(i) for i in range(len(workers))], reports, config, now_s)


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([], False),
        ([[FULL]], True),
        ([[LATE]], True),
        ([[FREE]], False),
        ([[SILENT]], False),
        ([[]], False),
        ([None], False),
        ([[FULL], [LATE]], True),
        ([[FULL], [FREE]], False),
        ([[FULL], None], False),
        ([[FULL, FREE]], False),
        ([[FULL, LATE]], True),
    ],
)
def test_busy(workers: list[Any], expected: bool) -> None:
    assert busy(*workers) == expected


def test_old_reports_do_not_count() -> None:
    assert busy([FULL], now_s=5.0)
    assert not busy([FULL], now_s=5.1)


def test_only_what_was_asked_for_counts() -> None:
    blocks, tokens = OverloadConfig(active_decode_blocks_threshold=0), OverloadConfig(active_prefill_tokens_threshold=0)
    assert not busy([FULL], config=OverloadConfig())
    assert (busy([FULL], config=blocks), busy([LATE], config=blocks)) == (True, False)
    assert (busy([FULL], config=tokens), busy([LATE], config=tokens)) == (False, True)


def test_workers_for_one_part_of_a_request_are_no_help_with_the_other() -> None:
    instances = [instance(0), instance(1), instance(2, "prefill")]
    reports = {0: Report(ranks=[FREE], at_s=0.0), 1: Report(ranks=[FULL], at_s=0.0), 2: Report(ranks=[LATE], at_s=0.0)}
    assert all_busy(instances, reports, CONFIG, 0.0)
    assert not all_busy(instances[:2], reports, CONFIG, 0.0)
