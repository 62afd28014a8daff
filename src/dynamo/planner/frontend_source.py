"""The traffic as the frontends count it."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dynamo.errors import DynamoError, UnavailableError
from dynamo.planner.observation import Traffic
from dynamo.planner.traffic_sums import as_traffic, difference, is_sane, summed
from dynamo.protocols.traffic import ModelTraffic
from dynamo.runtime.client import Client

ANSWER_S = 2.0  # how long a frontend may take
_NEWBORN_INTERVALS = 2.0  # one that has been up for longer was there before, but not known
_SILENT_LOOKS = 12  # in a row, after which a frontend counts for nothing: with the default interval, a minute


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What one frontend has counted since its start."""

    counted: ModelTraffic  # all models that matter together
    at_s: float


class FrontendSource:
    """Asks all frontends of a namespace each time. What each has counted since it was asked before is the traffic.

    While one does not answer the traffic is not known. One that has been silent for long, such as a process that hangs,
    is left out, as long as others answer: a single one must not keep the planner from deciding for ever.
    """

    def __init__(
        self,
        client: Client,
        *,
        model: str | None = None,
        timeout_s: float = ANSWER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`client` of the frontends' traffic endpoint, with replies of list[ModelTraffic]; closed with the source.

        `model` is the only one whose requests count; None: all do.
        """
        self._client = client
        self._model = model
        self._timeout_s = timeout_s
        self._clock = clock
        self._answers: Mapping[int, _Answer] = {}
        self._silent_looks: Mapping[int, int] = {}  # of those that did not answer at the last look: how many in a row
        self._looked_s: float | None = None
        self.problems: Sequence[str] = ()  # what is left out of the traffic

    async def traffic(self) -> Traffic:
        """Since the last call. Raises UnavailableError when it cannot be known whole, as at the first."""
        now_s = self._clock()
        looked_s, self._looked_s = self._looked_s, now_s
        before = self._answers
        instance_ids = self._client.instance_ids()
        asked = await asyncio.gather(*(self._ask(i) for i in instance_ids))
        answers = {i: answer for i, answer in zip(instance_ids, asked, strict=True) if isinstance(answer, _Answer)}
        silent = {i: answer for i, answer in zip(instance_ids, asked, strict=True) if isinstance(answer, str)}
        # One that is silent now is asked for all since its last answer, when it speaks again.
        self._answers = {i: before[i] for i in silent if i in before} | answers
        self._silent_looks = {i: self._silent_looks.get(i, 0) + 1 for i in silent}
        self.problems = ()
        if not instance_ids:
            raise UnavailableError(f"no frontend in namespace {self._client.endpoint.namespace!r} tells its traffic")
        if silent:
            first = min(silent)
            said = (
                f"{len(silent)} of {len(instance_ids)} frontends do not tell their traffic: {first:x}: {silent[first]}"
            )
            if not answers or min(self._silent_looks.values()) < _SILENT_LOOKS:
                raise UnavailableError(said)
            self.problems = (f"traffic: left out, as {said}",)
        if looked_s is None:
            raise UnavailableError("the traffic shows at the second look")
        return _traffic(before, answers, now_s - looked_s)

    async def close(self) -> None:
        await self._client.close()

    async def _ask(self, instance_id: int) -> _Answer | str:
        """A text says why there is none."""
        try:
            async with asyncio.timeout(self._timeout_s):
                models: list[ModelTraffic] = await self._client.ask(None, instance_id)
        except DynamoError as error:
            return str(error)
        except TimeoutError:
            return f"no answer within {self._timeout_s:g} s"
        counted = summed(model for model in models if self._model in (None, model.model))
        if not is_sane(counted):
            return "what it says makes no sense"
        return _Answer(counted=counted, at_s=self._clock())


def _traffic(before: Mapping[int, _Answer], answers: Mapping[int, _Answer], duration_s: float) -> Traffic:
    """Raises UnavailableError for frontends that are not new, but have not answered before."""
    added: list[ModelTraffic] = []
    requests = 0.0
    for instance_id, answer in answers.items():
        former = before.get(instance_id)
        if former is not None:
            part = difference(former.counted, answer.counted)
            elapsed_s = answer.at_s - former.at_s
        elif answer.counted.uptime_s <= _NEWBORN_INTERVALS * duration_s:
            part = answer.counted
            elapsed_s = answer.counted.uptime_s
        else:
            raise UnavailableError(
                f"frontend {instance_id:x} has not been heard of before: its traffic shows next time"
            )
        added.append(part)
        # Over a longer time than the others, its requests count as many as they were in a part of it that is as long.
        requests += part.arrived_requests * duration_s / max(duration_s, elapsed_s)
    return as_traffic(summed(added), requests=requests, duration_s=duration_s)
