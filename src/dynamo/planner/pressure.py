"""What queues, caches and latencies show, whatever a model says. Pure."""

from dynamo.planner.need import Targets
from dynamo.planner.situation import Situation

_KV_FULL = 0.9  # from this on engines preempt
_LATENCY_AIM = 0.8  # share of a target, with one worker fewer


def pressure(situation: Situation, targets: Targets) -> str:
    """What shows that there are too few workers, those that start included; "": nothing."""
    load, traffic, relief = situation.load, situation.traffic, situation.relief
    if not situation.ready:
        return ""
    if load is not None and load.kv_usage * relief > _KV_FULL:
        return f"{load.kv_usage:.0%} of the KV blocks are in use"
    if situation.decodes and load is not None and load.waiting * relief > situation.ready:
        return f"{load.waiting:.0f} requests wait for {situation.ready} workers"
    ttft_s = traffic.ttft_s
    if situation.prefills and ttft_s is not None and ttft_s * relief > targets.ttft_s and _prompts_wait(situation):
        return f"TTFT {ttft_s:.3g} s, the target is {targets.ttft_s:.3g} s"
    itl_s = traffic.itl_s
    crowded = load is None or load.running > situation.ready
    if situation.decodes and itl_s is not None and itl_s * relief > targets.itl_s and crowded:
        return f"ITL {itl_s * 1000:.3g} ms, the target is {targets.itl_s * 1000:.3g} ms"
    return ""


def tightness(situation: Situation, targets: Targets) -> str:
    """What would be too much for one worker fewer, if latencies grew as the load of each; "": nothing."""
    load, traffic = situation.load, situation.traffic
    if load is not None and load.waiting > 0:
        return f"{load.waiting:.0f} requests wait"
    more = situation.counted / (situation.counted - 1)
    ttft_s, itl_s = traffic.ttft_s, traffic.itl_s
    if situation.prefills and ttft_s is not None and ttft_s * more > _LATENCY_AIM * targets.ttft_s:
        return f"TTFT {ttft_s:.3g} s might become {ttft_s * more:.3g} s with one fewer"
    if situation.decodes and itl_s is not None and itl_s * more > _LATENCY_AIM * targets.itl_s:
        return f"ITL {itl_s * 1000:.3g} ms might become {itl_s * more * 1000:.3g} ms with one fewer"
    return ""


def _prompts_wait(situation: Situation) -> bool:
    """Whether prompts wait for each other, so that more workers would help."""
    load, queued = situation.load, situation.queued_tokens
    if load is None:
        return True
    if queued is None:
        return load.waiting > 0
    return load.waiting > 0 or queued > situation.ready * situation.prompt_tokens
