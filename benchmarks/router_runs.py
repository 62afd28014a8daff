"""Simulations of one trace, several at a time, each in a process of its own."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from dynamo.simulator.config import SimulationConfig
from dynamo.simulator.modes import SimulatedMode
from dynamo.simulator.report import Summary
from dynamo.simulator.simulation import simulate
from dynamo.simulator.trace import TraceRequest, read_trace

Curve = Mapping[float, Summary]  # by request rate

_trace: list[TraceRequest] = []  # of a child process, which reads it once


class Runs:
    """Runs what it is asked for, the same thing only once."""

    def __init__(self, pool: ProcessPoolExecutor, config: SimulationConfig) -> None:
        self._pool = pool
        self._config = config
        self._done: dict[tuple[SimulatedMode, SimulationConfig], Summary] = {}

    def compare(
        self, modes: Iterable[SimulatedMode], rates: Iterable[float], *, workers: int, blocks: int | None = None
    ) -> list[Summary]:
        """A run for each rate and mode, in this order; `blocks` of a worker, None: ample."""
        modes = list(modes)
        points = [(mode, self._point(rate, workers, blocks)) for rate in rates for mode in modes]
        missing = [point for point in points if point not in self._done]
        self._done.update(zip(missing, self._pool.map(_run, missing), strict=True))
        return [self._done[point] for point in points]

    def curve(self, mode: SimulatedMode, rates: Sequence[float], *, workers: int) -> Curve:
        return dict(zip(rates, self.compare([mode], rates, workers=workers), strict=True))

    def _point(self, rate: float, workers: int, blocks: int | None) -> SimulationConfig:
        return dataclasses.replace(self._config, rate=rate, workers=workers, num_gpu_blocks_override=blocks)


@contextmanager
def running(trace: Path, config: SimulationConfig, jobs: int) -> Iterator[Runs]:
    """Up to `jobs` processes that have read the trace; they end with the block."""
    arguments = (trace, config.limit, config.trace_block_size)
    with ProcessPoolExecutor(jobs, initializer=_read, initargs=arguments) as pool:
        yield Runs(pool, config)


def _read(trace: Path, limit: int | None, block_size: int) -> None:
    _trace[:] = read_trace(trace, limit=limit, block_size=block_size)


def _run(point: tuple[SimulatedMode, SimulationConfig]) -> Summary:
    mode, config = point
    return simulate(config, mode, _trace)
