"""`dynamo profile`: how fast an engine is, for the planner."""

import asyncio
import importlib.util
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from dynamo.cli.worker_flags import split_at_dashes
from dynamo.config import build_parser, from_namespace, option
from dynamo.engines.make import ENGINES, check_engine
from dynamo.errors import ConfigError, DynamoError
from dynamo.llm.model_card import default_name
from dynamo.planner.config import DAY_S
from dynamo.planner.profile import Profile
from dynamo.planner.profile_file import check_profile, write_profile
from dynamo.planner.server_url import server_url
from dynamo.profiling.server import served
from dynamo.profiling.stream import Server
from dynamo.profiling.sweep import Grid, Sweep

PROG = "dynamo profile"
_NUMBER_MAX = 10_000_000  # tokens, or requests at once: what more of them measure is the client's memory


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileConfig:
    """Measure how fast an engine serves MODEL, and write that down for the planner."""

    engine: str = option("vllm", flag="--engine", choices=ENGINES, help="what runs the model")
    url: str | None = option(
        None, flag="--url", metavar="URL", help="of a running server with one idle worker (default: start one)"
    )
    api_key: str | None = option(None, flag=(), env="OPENAI_API_KEY", help="for --url, where it asks for one")
    output: str | None = option(
        None, flag="--output", metavar="FILE", help="where the profile goes (default: MODEL's name.profile.json)"
    )
    plot: str | None = option(None, flag="--plot", metavar="FILE", help="draw it too (needs the extra plot)")
    duration_s: float = option(300.0, flag="--duration-s", minimum=1, maximum=DAY_S, help="measure no longer than that")
    prompt_lengths: str = option(
        "128,512,2048,8000", flag="--prompt-lengths", metavar="N,N", help="tokens of the prompts, for prefill"
    )
    contexts: str = option("256,1024,4096", flag="--contexts", metavar="N,N", help="tokens so far, for decode")
    concurrencies: str = option("1,2,4,8,16,32,64", flag="--concurrencies", metavar="N,N", help="requests at once")
    max_kv_tokens: int | None = option(
        None, flag="--max-kv-tokens", minimum=1, help="that fit into its KV cache, if that is to bound concurrency"
    )

    def grid(self) -> Grid:
        """Raises ConfigError for what is no list of numbers."""
        return Grid(
            prompt_tokens=_numbers("--prompt-lengths", self.prompt_lengths),
            context_tokens=_numbers("--contexts", self.contexts),
            concurrency=_numbers("--concurrencies", self.concurrencies),
        )


def main(argv: Sequence[str]) -> int:
    own, worker_flags = split_at_dashes(argv)
    parser = build_parser(ProfileConfig, prog=PROG, epilog="What follows -- goes to the worker.")
    parser.add_argument("model", metavar="MODEL", help="smollm2, a directory or a hub name; with --url the served name")
    namespace = parser.parse_args(own)
    try:
        asyncio.run(_profile(namespace.model, from_namespace(ProfileConfig, namespace), worker_flags))
    except DynamoError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


async def _profile(model: str, config: ProfileConfig, worker_flags: Sequence[str]) -> None:
    grid, name = config.grid(), default_name(model)
    output = Path(config.output or f"{name}.profile.json")
    for path in (output, *([Path(config.plot)] if config.plot else [])):
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"there is no directory {path.absolute().parent}")
        if path.is_dir():
            raise ConfigError(f"{path} is a directory: a file is to be written there")
    if config.plot and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: scripts/install --plot, or pip install 'dynamo-py[plot]'")
    async with AsyncExitStack() as stack:
        if config.url is not None:
            server = Server(url=server_url(config.url, "--url"), model=model, api_key=config.api_key)
        else:
            check_engine(config.engine)
            server = await stack.enter_async_context(served(model, config.engine, worker_flags))
        print(f"measuring {server.model} on {server.url} for at most {config.duration_s:g} s", flush=True)
        prefill, decode = await Sweep(server, config.duration_s, _say).run(grid)
    profile = Profile(
        engine=config.engine,
        model=name,
        max_kv_tokens=config.max_kv_tokens,
        prefill=prefill,
        decode=decode,
    )
    check_profile(profile)
    write_profile(output, profile)
    print(f"written: {output}")
    if config.plot:
        from dynamo.profiling.plots import draw_profile  # an extra

        draw_profile(profile, Path(config.plot))
        print(f"written: {config.plot}")


def _say(line: str) -> None:
    print(line, flush=True)


def _numbers(flag: str, text: str) -> Sequence[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise ConfigError(f"{flag} takes whole numbers with commas between them, not {text!r}") from error
    if numbers[0] < 1:
        raise ConfigError(f"{flag}: {numbers[0]} is less than 1")
    if numbers[-1] > _NUMBER_MAX:
        raise ConfigError(f"{flag}: {numbers[-1]} is more than {_NUMBER_MAX}")
    return numbers
