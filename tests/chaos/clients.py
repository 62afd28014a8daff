"""The clients: each asks one question after the other, and looks at the answers."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from .client import BrokenError, Gaps, RefusedError, ask
from .fleet import Fleet, Frontend
from .questions import Question, read
from .report import Report


@asynccontextmanager
async def clients(number: int, disturbed: Fleet, asked: Sequence[Question], report: Report) -> AsyncIterator[None]:
    """That many ask within the block, and then until they have their last answers."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for i in range(number):
            group.create_task(_client(random.Random(f"{report.seed}-{i}"), disturbed, asked, report, over))
        try:
            yield
        finally:
            over.set()


async def _client(
    rng: random.Random, disturbed: Fleet, asked: Sequence[Question], report: Report, over: asyncio.Event
) -> None:
    """Asks one question after the other, each of a frontend of which nobody has told it that it ends."""
    while not over.is_set():
        question = rng.choice(asked)
        again = True
        while again:
            frontend = rng.choice([frontend for frontend in disturbed.frontends if not frontend.disturbed])
            again = await _asked(question, frontend, report)


async def _asked(question: Question, frontend: Frontend, report: Report) -> bool:
    """Whether the question has to be asked again."""
    disturbances, gaps = frontend.disturbances, Gaps()
    what = f"{question.path} {question.body}"[:200]
    try:
        answer = read(await ask(frontend.url, question.path, question.body, gaps))
    except BrokenError as error:
        if frontend.disturbances != disturbances:
            report.asked_again += 1
            return True
        report.lost.append(f"{frontend.name}: {error}: {what}")
    except (RefusedError, TimeoutError, ValueError) as error:
        report.lost.append(f"{frontend.name}: {error!r}: {what}")
    else:
        if answer == question.expected:
            report.answered += 1
            report.tokens += answer.completion_tokens
        else:
            report.wrong.append(f"{frontend.name}: {answer} instead of {question.expected}: {what}")
        report.first_token_s = max(report.first_token_s, gaps.first_s)
        report.silence_s = max(report.silence_s, gaps.later_s)
    return False
