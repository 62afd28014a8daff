"""`dynamo planner`: what the planner of a deployment sees, wants and does; and the virtual connector's other end."""

import argparse
import asyncio
import inspect
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import msgspec

from dynamo.cli.elsewhere import elsewhere
from dynamo.cli.planner_report import report_lines
from dynamo.config import build_parser, from_namespace
from dynamo.errors import DynamoError, UnavailableError
from dynamo.planner.decisions import DECISIONS_ENDPOINT, KEPT, PLANNER_COMPONENT, DecisionsRequest, PlannerReport
from dynamo.planner.scaling import SCALING_ENDPOINT, ScalingRequest, ScalingTarget
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.handler import closing
from dynamo.runtime.instance import EndpointId

PROG = "dynamo planner"
_ANSWER_S = 5.0
_DIGITS_MAX = 15
_NEWS_S = 1.0  # where discovery is another host's, it takes a moment to hear of a planner


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerCommandConfig(RuntimeConfig):
    """Ask the planner of a deployment, and tell it what its virtual connector has to know.

    `status` shows the last decision and why it was made. `target` shows how many workers a planner with
    `--connector virtual` wants; who starts and ends them says by `acknowledge ID` that it does, or with ROLE=N how many
    there will be.
    """


def main(argv: Sequence[str]) -> int:
    parser = _parser()
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    config = from_namespace(PlannerCommandConfig, arguments)
    request = _request(parser, arguments)
    try:
        return asyncio.run(_run(config, request, as_json=arguments.json))
    except DynamoError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads, such as `head`, has had enough; at the end nothing is left to be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = build_parser(PlannerCommandConfig, prog=PROG)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = inspect.cleandoc(parser.description or "")
    parser.add_argument("action", choices=("status", "target", "acknowledge"))
    parser.add_argument("values", nargs="*", default=[], metavar="ID [ROLE=N ...]", help="for acknowledge")
    parser.add_argument(
        "--follow", action="store_true", help="for status and target: each further one too, until Ctrl-C"
    )
    parser.add_argument("--last", type=int, default=1, metavar="N", help="for status: so many decisions (default: 1)")
    parser.add_argument("--json", action="store_true", help="for programs: one object in each line")
    return parser


def _request(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> DecisionsRequest | ScalingRequest:
    if arguments.action != "acknowledge" and arguments.values:
        parser.error(f"{arguments.action} takes no {arguments.values[0]!r}")
    if not 1 <= arguments.last <= KEPT:
        parser.error(f"--last must be from 1 to {KEPT}, as many are kept, not {arguments.last}")
    match arguments.action:
        case "status":
            return DecisionsRequest(last=arguments.last, follow=arguments.follow)
        case "target":
            return ScalingRequest(follow=arguments.follow)
        case _:
            return _acknowledgement(parser, arguments.values)


def _acknowledgement(parser: argparse.ArgumentParser, values: Sequence[str]) -> ScalingRequest:
    if not values or not _is_number(values[0]):
        parser.error("acknowledge needs the target's ID, as `dynamo planner target` shows it")
    workers: dict[WorkerType, int] = {}
    for value in values[1:]:
        role, _, count = value.partition("=")
        if role not in set(WorkerType) or not _is_number(count):
            parser.error(f"workers are written ROLE=N, with {', '.join(WorkerType)} as ROLE, not {value!r}")
        workers[WorkerType(role)] = int(count)
    return ScalingRequest(acknowledge=int(values[0]), workers=workers or None)


def _is_number(text: str) -> bool:
    """Of a size that is worth sending: what is wrong with it beyond that, the planner says."""
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX


async def _run(config: PlannerCommandConfig, request: DecisionsRequest | ScalingRequest, *, as_json: bool) -> int:
    """0 when there was an answer."""
    runtime = DistributedRuntime(config=config)
    try:
        answered = False
        async with closing(_answers(runtime, config.worker_namespace, request)) as answers:
            async for answer in answers:
                if answered and not as_json:
                    print()
                answered = True
                print(msgspec.json.encode(answer).decode() if as_json else "\n".join(_lines(answer)), flush=True)
        if not answered:
            raise UnavailableError("the planner has not decided anything yet: it does after its first interval")
        return 0
    finally:
        await runtime.close()


async def _answers(
    runtime: DistributedRuntime, namespace: str, request: DecisionsRequest | ScalingRequest
) -> AsyncIterator[PlannerReport | ScalingTarget]:
    """Raises UnavailableError where nobody answers, with what to do about it."""
    of_decisions = isinstance(request, DecisionsRequest)
    endpoint = EndpointId(namespace, PLANNER_COMPONENT, DECISIONS_ENDPOINT if of_decisions else SCALING_ENDPOINT)
    client = runtime.client(endpoint, PlannerReport if of_decisions else ScalingTarget)
    try:
        await client.wait_for_instances(_NEWS_S)
    except TimeoutError:
        kind, command = ("", "dynamo serve --planner` or `") if of_decisions else (" with --connector virtual", "")
        flags = kind.removeprefix(" with")
        where = elsewhere(runtime, endpoint) or f": start one by `{command}python -m dynamo.planner{flags}`"
        raise UnavailableError(f"no planner{kind} runs in namespace {namespace!r}{where}") from None
    if (several := len(client.instance_ids())) > 1:
        if not of_decisions:  # which one's target?
            raise UnavailableError(f"{several} planners run in namespace {namespace!r}: give each one of its own")
        print(f"{several} planners run in namespace {namespace!r}; this is one of them", file=sys.stderr)
    async with closing(await client.generate(request, annotated=False)) as answers:
        while True:
            try:
                async with asyncio.timeout(None if request.follow else _ANSWER_S):
                    yield await anext(answers)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise UnavailableError(f"the planner has not answered within {_ANSWER_S:g} s") from None


def _lines(answer: PlannerReport | ScalingTarget) -> Sequence[str]:
    if isinstance(answer, PlannerReport):
        return report_lines(answer)
    workers = " ".join(f"{role.value}={count}" for role, count in answer.workers.items()) or "nothing yet"
    acknowledged = "acknowledged" if answer.acknowledged else "not acknowledged"
    return [f"target {answer.id}: {workers}  ({acknowledged}, {answer.age_s:.0f} s old)"]
