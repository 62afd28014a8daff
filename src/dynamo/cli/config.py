"""`dynamo config`: looks at the settings of running frontends, and changes them."""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dynamo.config import build_parser, from_namespace
from dynamo.errors import DynamoError
from dynamo.frontend.config import FRONTEND_COMPONENT
from dynamo.runtime.client import Client
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.handler import closing
from dynamo.runtime.instance import INSTANCES_PREFIX, EndpointId
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
    parser = build_parser(ConfigConfig, prog=PROG)
    parser.add_argument("action", choices=("get", "set"))
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="for set: as the flags of the frontend")
    arguments = parser.parse_intermixed_args(argv)
    config = from_namespace(ConfigConfig, arguments)
    changes = _changes(parser, arguments.action, arguments.settings)
    try:
        return asyncio.run(_run(config, changes))
    except DynamoError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1


def _changes(parser: argparse.ArgumentParser, action: str, settings: Sequence[str]) -> dict[str, str]:
    if (action == "set") != bool(settings):
        parser.error("get takes no NAME=VALUE, set at least one")
    changes: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            parser.error(f"a setting is written NAME=VALUE, not {setting!r}")
        changes[name.removeprefix("--").replace("-", "_")] = value
    return changes


async def _run(config: ConfigConfig, changes: Mapping[str, str]) -> int:
    """0 when every frontend has answered, and there was one."""
    runtime = DistributedRuntime(config=config)
    client = runtime.client(EndpointId(config.worker_namespace, FRONTEND_COMPONENT, CONFIG_ENDPOINT), dict[str, str])
    try:
        instances = await _frontends(client)
        if not instances:
            print(f"{PROG}: no frontend in namespace {config.worker_namespace!r}{_elsewhere(runtime)}", file=sys.stderr)
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


def _elsewhere(runtime: DistributedRuntime) -> str:
    """Where there are frontends, for a person."""
    with contextlib.closing(runtime.discovery.watch(INSTANCES_PREFIX)) as watch:
        parts = [event.key.removeprefix(INSTANCES_PREFIX).split("/") for event in watch.take()]
    found = sorted({part[0] for part in parts if part[1:3] == [FRONTEND_COMPONENT, CONFIG_ENDPOINT]})
    return f"; there are some with --namespace {' or '.join(found)}" if found else ""


async def _ask(client: Client, instance_id: int, request: ConfigRequest) -> bool:
    try:
        async with (
            asyncio.timeout(_TIMEOUT_S),
            closing(await client.direct(request, instance_id, annotated=False)) as answer,
        ):
            async for values in answer:
                print(f"frontend {instance_id:x}")
                for name, value in values.items():
                    print(f"  {name} = {value}")
    except (DynamoError, TimeoutError) as error:
        print(f"{PROG}: frontend {instance_id:x}: {error or 'no answer'}", file=sys.stderr)
        return False
    return True
