"""Whether a request is let in, waits, or is refused because there are too many. Pure: it is told the time.

What is refused is refused early, before its prompt is looked at: under overload, work for requests that come to nothing
is what the others lack.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum

from dynamo.frontend.first_token_forecast import FirstTokenForecast
from dynamo.frontend.overload_config import OverloadConfig

_RETRY_S = 1.0  # where nothing says how long it will take
_BYTES_PER_TOKEN = 4.0  # of a request's body, until there is experience
_BYTES_WEIGHT = 0.05  # of one request


class Reason(StrEnum):
    """Why a request is refused, as metrics name it."""

    TTFT = "ttft"
    INFLIGHT = "inflight"
    QUEUED_TOKENS = "queued_tokens"
    WORKERS_BUSY = "workers_busy"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """No."""

    reason: Reason
    retry_after_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """A request from its arrival until it leaves."""

    body_bytes: int
    tokens: int  # of its prompt, estimated
    admitted_s: float | None = None  # None: it waits to be let in
    ahead: int = 0  # requests that waited for their first token when it was let in
    answered: bool = False


class Admission:
    """The requests of one model in one frontend.

    Each gets a ticket by arrive(). The one who holds it says answered() at the first output, and leave() at the end,
    whatever the end is. After either, and after set_fleet(), admit() tells who need not wait any longer.
    """

    def __init__(self, config: OverloadConfig) -> None:
        self._config = config
        self._forecast = None if config.ttft_limit_s is None else FirstTokenForecast(config.ttft_limit_s)
        self._queue: OrderedDict[int, Ticket] = OrderedDict()  # by id(); in the order of their arrival
        self._workers = 1
        self._busy = False
        self._bytes_per_token = _BYTES_PER_TOKEN
        self.inflight = 0  # let in and not left
        self.unanswered = 0  # of these, without an output
        self.queued_tokens = 0  # of the prompts of these

    @property
    def queued(self) -> int:
        """Requests that wait to be let in."""
        return len(self._queue)

    def set_fleet(self, *, workers: int, busy: bool) -> None:
        """How many workers there are, and whether all of them are busy."""
        self._workers = workers
        self._busy = busy

    def arrive(self, body_bytes: int, now_s: float) -> Ticket | Refusal:
        """The ticket of a request that is let in, or that waits (`admitted_s` is None then)."""
        ticket = Ticket(body_bytes=body_bytes, tokens=round(body_bytes / self._bytes_per_token))
        obstacle = self._obstacle(ticket.tokens)
        if obstacle is None and not self._queue:
            self._let_in(ticket, now_s)
            return ticket
        if obstacle is Reason.TTFT:
            return Refusal(reason=obstacle, retry_after_s=self._clearing_s())
        config = self._config
        if obstacle is not None and not (config.admission_queue_size and config.admission_queue_timeout_s):
            return Refusal(reason=obstacle, retry_after_s=_RETRY_S)
        if len(self._queue) >= config.admission_queue_size:
            return Refusal(reason=Reason.QUEUE_FULL, retry_after_s=_RETRY_S)
        self._queue[id(ticket)] = ticket
        return ticket

    def admit(self, now_s: float) -> list[Ticket]:
        """Lets in, in the order of their arrival, those that wait and need not any longer."""
        admitted: list[Ticket] = []
        while self._queue:
            ticket = next(iter(self._queue.values()))
            if self._obstacle(ticket.tokens, of_queue=True) is not None:
                break
            del self._queue[id(ticket)]
            self._let_in(ticket, now_s)
            admitted.append(ticket)
        return admitted

    def answered(self, ticket: Ticket, prompt_tokens: int | None, now_s: float) -> None:
        """Its first output is there, which may say how long the prompt was."""
        assert ticket.admitted_s is not None, "it has not even been let in"
        if ticket.answered:
            return
        self._settle(ticket)
        if self._forecast is not None:
            self._forecast.observe(ahead=ticket.ahead, wait_s=now_s - ticket.admitted_s)
        if prompt_tokens:
            self._bytes_per_token += _BYTES_WEIGHT * (ticket.body_bytes / prompt_tokens - self._bytes_per_token)

    def leave(self, ticket: Ticket) -> None:
        """It has ended, or was given up, while it waited too."""
        if ticket.admitted_s is None:
            del self._queue[id(ticket)]
            return
        self.inflight -= 1
        if not ticket.answered:
            self._settle(ticket)

    def _let_in(self, ticket: Ticket, now_s: float) -> None:
        ticket.admitted_s = now_s
        ticket.ahead = self.unanswered
        self.inflight += 1
        self.unanswered += 1
        self.queued_tokens += ticket.tokens

    def _settle(self, ticket: Ticket) -> None:
        ticket.answered = True
        self.unanswered -= 1
        self.queued_tokens -= ticket.tokens

    def _obstacle(self, tokens: int, *, of_queue: bool = False) -> Reason | None:
        """What keeps a request with so many tokens out; `of_queue`: it has been found not to wait too long."""
        config = self._config
        if self._forecast is not None and not of_queue:
            # One request at each worker makes nobody wait, however long it takes.
            room = max(self._forecast.room, self._workers, 1)
            if self.unanswered + len(self._queue) >= room:
                return Reason.TTFT
        if config.max_inflight is not None and self.inflight >= config.max_inflight:
            return Reason.INFLIGHT
        limit = config.max_queued_tokens
        if limit is not None and self.queued_tokens and self.queued_tokens + tokens > limit:  # a large one goes alone
            return Reason.QUEUED_TOKENS
        return Reason.WORKERS_BUSY if self._busy else None

    def _clearing_s(self) -> float:
        assert self._forecast is not None
        return max(_RETRY_S, self._forecast.wait_s(self.unanswered))
