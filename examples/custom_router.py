"""A router of your own: takes the worker with the longest cached prefix, unless that one is much busier than others.

    python -m dynamo.mocker --model-path smollm2 --num-workers 3 --block-size 16 &
    python examples/custom_router.py

`KvRouter` follows the workers, their KV events and their load; the choice is made here. Four conversations of three
turns each are sent; the output says who served each turn, and how much of its prompt was cached there.
"""

import asyncio
import random

from dynamo.llm import KvRouter, KvRouterConfig
from dynamo.protocols.generation import StopConditions
from dynamo.runtime import DistributedRuntime, dynamo_worker

MUCH_BUSIER_BLOCKS = 200
TURN_TOKENS = 64


def choose(router: KvRouter, prompt: list[int]) -> int:
    """The instance id of the worker to take."""
    candidates = router.look(prompt).candidates
    idlest = min(c.decode_blocks for c in candidates)
    fit = [c for c in candidates if c.decode_blocks <= idlest + MUCH_BUSIER_BLOCKS]
    best = max(fit, key=lambda c: (c.overlap.total, -c.decode_blocks, random.random()))  # noqa: S311
    return best.worker.instance_id


async def converse(router: KvRouter, name: str) -> None:
    history = [random.randrange(1000, 40000) for _ in range(TURN_TOKENS)]  # noqa: S311 - what the user says
    for turn in range(1, 4):
        worker = choose(router, history)
        cached = 0
        outputs = await router.generate(history, "m", worker_id=worker, stop_conditions=StopConditions(max_tokens=20))
        prompt_tokens = len(history)
        async for output in outputs:
            cached = max(cached, output.cached_tokens or 0)
            history += output.token_ids
        print(f"{name}, turn {turn}: worker {worker:x} had {cached} of {prompt_tokens} tokens")
        history += [random.randrange(1000, 40000) for _ in range(TURN_TOKENS)]  # noqa: S311


@dynamo_worker()
async def main(runtime: DistributedRuntime) -> None:
    router = await KvRouter.discover(runtime.endpoint("dynamo.backend.generate"), KvRouterConfig())
    await router.wait_for_workers()
    await asyncio.gather(*(converse(router, f"conversation {i}") for i in range(1, 5)))
    await router.close()


if __name__ == "__main__":
    asyncio.run(main())
