"""What the workers of a model say of their load, and whether that is too much. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dynamo.frontend.overload_config import OverloadConfig
from dynamo.protocols.load import WorkerLoad
from dynamo.runtime.instance import EndpointId, Instance

_REPORT_TTL_S = 5.0  # a worker that has said nothing for so long is not taken to be busy: others see to the dead


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a worker said, all of its ranks, and when."""

    ranks: Sequence[WorkerLoad]
    at_s: float

    def is_old(self, now_s: float) -> bool:
        return now_s - self.at_s > _REPORT_TTL_S


def endpoint_of(instance: Instance) -> EndpointId:
    return EndpointId(instance.namespace, instance.component, instance.endpoint)


def all_busy(
    instances: Iterable[Instance], reports: Mapping[int, Report], config: OverloadConfig, now_s: float
) -> bool:
    """Whether there are workers whose place no other can take and that are all busy.

    Those of one endpoint can stand in for each other, those that prefill not for those that decode.
    """
    groups: defaultdict[EndpointId, list[bool]] = defaultdict(list)
    for instance in instances:
        report = reports.get(instance.instance_id)
        busy = report is not None and not report.is_old(now_s) and _is_busy(report, config)
        groups[endpoint_of(instance)].append(busy)
    return any(map(all, groups.values()))


def _is_busy(report: Report, config: OverloadConfig) -> bool:
    """All of its ranks are."""
    return bool(report.ranks) and all(_is_rank_busy(rank, config) for rank in report.ranks)


def _is_rank_busy(rank: WorkerLoad, config: OverloadConfig) -> bool:
    blocks, tokens = config.active_decode_blocks_threshold, config.active_prefill_tokens_threshold
    if blocks is not None and rank.kv_total_blocks and rank.kv_used_blocks > blocks * rank.kv_total_blocks:
        return True
    return tokens is not None and rank.prefill_tokens is not None and rank.prefill_tokens > tokens
