"""`dynamo config`: looks at the settings of running frontends, and changes them."""

import argparse
import asyncio
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dynamo.cli.elsewhere import elsewhere
from dynamo.config import as_typed, build_parser, from_namespace, settings
from dynamo.errors import DynamoError
from dynamo.protocols.traffic import FRONTEND_COMPONENT
from dynamo.router.disagg import DisaggConfig
from dynamo.runtime.client import Client
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.handler import closing
from dynamo.runtime.instance import EndpointId
from dynamo.runtime.live_config import CONFIG_ENDPOINT, ConfigRequest

PROG = "dynamo config"
_TIMEOUT_S = 5.0
_NEWS_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigConfig(RuntimeConfig):
    """Say what the frontends of a deployment are set to, or change it while they run.

    `dynamo config get`, `dynamo config set NAME=VALUE ...`. A frontend that starts later has what its own flags say.
    """


def main(argv: Sequence[str]) -> int:
    parser = build_parser(ConfigConfig, prog=PROG, epilog="settings:\n" + "\n".join(_known()))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # names are not to be cut at their hyphens
    parser.description = inspect.cleandoc(parser.description or "")
    parser.add_argument("action", choices=("get", "set"))
    parser.add_argument("settings", nargs="*", default=[], metavar="NAME=VALUE", help="for set: see below")
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_hint(unknown[0])}")
    config = from_namespace(ConfigConfig, arguments)
    changes = _changes(parser, arguments.action, arguments.settings)
    try:
        return asyncio.run(_run(config, changes))
    except DynamoError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1


def _known() -> Iterator[str]:
    """A line for each thing that can be set."""
    for setting in settings(DisaggConfig):
        choices = ("true", "false") if setting.type is bool else setting.option.choices
        yield f"  {as_typed(setting.name)}={'|'.join(choices) if choices else setting.option.metavar}"


def _hint(argument: str) -> str:
    """What else to write, if `argument` is a setting in the guise of a flag."""
    name, equals, value = argument.removeprefix("--").partition("=")
    if name not in (as_typed(setting.name) for setting in settings(DisaggConfig)):
        return ""
    return f": write {name}={value if equals else 'VALUE'}, without --"


def _changes(parser: argparse.ArgumentParser, action: str, given: Sequence[str]) -> dict[str, str]:
    if action == "get" and given:
        parser.error(f"get shows all settings, it takes no {given[0]!r}")
    if action == "set" and not given:
        parser.error(f"set needs NAME=VALUE, as in: {PROG} set max-local-prefill-length=512")
    changes: dict[str, str] = {}
    for setting in given:
        name, equals, value = setting.partition("=")
        if not equals:
            parser.error(f"a setting is written NAME=VALUE, not {setting!r}")
        changes[name] = value
    return changes


async def _run(config: ConfigConfig, changes: Mapping[str, str]) -> int:
    """0 when every frontend has answered, and there was one."""
    runtime = DistributedRuntime(config=config)
    endpoint = EndpointId(config.worker_namespace, FRONTEND_COMPONENT, CONFIG_ENDPOINT)
    client = runtime.client(endpoint, dict[str, str])
    try:
        instances = await _frontends(client)
        if not instances:
            where = elsewhere(runtime, endpoint)
            print(f"{PROG}: no frontend in namespace {config.worker_namespace!r}{where}", file=sys.stderr)
        answered = [await _ask(client, instance_id, ConfigRequest(set=dict(changes))) for instance_id in instances]
        return 0 if answered and all(answered) else 1
    finally:
        await runtime.close()


async def _frontends(client: Client) -> list[int]:
    """Those that there are; where discovery is another host's, it takes a moment to hear of them."""
    try:
        return client.instance_ids() or await client.wait_for_instances(_NEWS_S)
    except TimeoutError:
        return []


async def _ask(client: Client, instance_id: int, request: ConfigRequest) -> bool:
    try:
        async with (
            asyncio.timeout(_TIMEOUT_S),
            closing(await client.direct(request, instance_id, annotated=False)) as answer,
        ):
            async for values in answer:
                print(f"frontend {instance_id:x}")
                for name, value in values.items():
                    print(f"  {as_typed(name)}={value}")
    except (DynamoError, TimeoutError) as error:
        print(f"{PROG}: frontend {instance_id:x}: {error or 'no answer'}", file=sys.stderr)
        return False
    return True
