"""`python -m benchmarks.ramp_load JOB`: streams chat completions at a rate that changes."""

import asyncio
import sys

import msgspec
import uvloop

from benchmarks.open_loop import OpenLoopJob, Shot, fire


class RampJob(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch after the other, each at a rate of its own, whether or not the one before has been answered."""

    stretches: list[OpenLoopJob]


async def climb(job: RampJob) -> list[Shot]:
    """All requests; their `at_s` counts from the first stretch's start."""
    start_s = 0.0
    firing = []
    for stretch in job.stretches:
        firing.append(asyncio.create_task(_later(stretch, start_s)))
        start_s += stretch.seconds
    return [shot for shots in await asyncio.gather(*firing) for shot in shots]


async def _later(stretch: OpenLoopJob, start_s: float) -> list[Shot]:
    await asyncio.sleep(start_s)
    shots = await fire(stretch)
    for shot in shots:
        shot.at_s += start_s
    return shots


if __name__ == "__main__":
    shots = uvloop.run(climb(msgspec.json.decode(sys.argv[1], type=RampJob)))
    sys.stdout.buffer.write(msgspec.json.encode(shots))
