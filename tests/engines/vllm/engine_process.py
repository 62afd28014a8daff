"""A program that starts vLLM and waits, for tests that kill it."""

import asyncio
import sys

from dynamo.engines.vllm.args import parse_command_line


async def main() -> None:
    _, config = parse_command_line(sys.argv[1:])
    from dynamo.engines.vllm.engine import VllmEngine

    engine = VllmEngine(config)
    await engine.start()
    print("started", flush=True)
    await engine.failed()


if __name__ == "__main__":
    asyncio.run(main())
