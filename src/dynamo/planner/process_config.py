"""`python -m dynamo.planner`'s command line, and the file that may stand for it."""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dynamo.config import build_parser, group, option, parse, settings
from dynamo.errors import ConfigError
from dynamo.planner.config import DAY_S, PlannerOptions
from dynamo.planner.connectors.kubernetes_config import KubernetesConfig
from dynamo.runtime.config import RuntimeConfig

CONNECTORS = ("local", "kubernetes", "virtual")
PROG = "python -m dynamo.planner"
_CONFIG_FLAG = "--config"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerConfig(RuntimeConfig):
    """Have as many workers as the traffic needs."""

    config: str | None = option(
        None,
        flag=_CONFIG_FLAG,
        metavar="FILE",
        help="YAML with flags, as in `ttft-ms: 500`; those of the command line win over it, it over the environment",
    )
    connector: str = option(
        "local",
        flag=("--connector", "--environment"),
        choices=CONNECTORS,
        help="who starts and ends workers: `dynamo serve`, Kubernetes, or somebody else who is told",
    )
    model_name: str | None = option(
        None, flag="--model-name", metavar="NAME", help="count only this model's requests and workers (default: all)"
    )
    connector_timeout_s: float = option(
        10.0,
        flag="--connector-timeout-s",
        minimum=0.01,
        maximum=DAY_S,
        help="how long the connector may take over one call",
    )
    acknowledge_timeout_s: float = option(
        60.0,
        flag="--acknowledge-timeout-s",
        minimum=0,
        help="virtual: a target that nobody has acknowledged for so long is reported",
    )
    prometheus_url: str | None = option(
        None,
        flag="--prometheus-url",
        metavar="URL",
        help="ask Prometheus for the traffic, not the frontends themselves",
    )
    prometheus_window_s: float = option(
        60.0,
        flag="--prometheus-window-s",
        minimum=1,
        maximum=DAY_S,
        help="over which time the traffic is taken: several of Prometheus' scrapes",
    )
    prometheus_labels: str = option(
        "",
        flag="--prometheus-labels",
        metavar="MATCHERS",
        help='which series count, such as \'job="frontend",cluster="a"\' (default: all)',
    )
    kubernetes: KubernetesConfig = group(KubernetesConfig)
    planner: PlannerOptions = group(PlannerOptions)


def planner_config(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> PlannerConfig:
    """From the command line, then the file that it names, then the environment.

    Exits like argparse for a wrong flag or value; raises ConfigError for a file that cannot be used, or has a wrong
    value, and for options that do not go together.
    """
    finder = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    finder.add_argument(_CONFIG_FLAG)
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return parse(PlannerConfig, argv, prog=PROG, environ=environ)
    flags = file_flags(PlannerConfig, Path(path))
    checker = build_parser(PlannerConfig, prog=PROG)
    checker.exit_on_error = False
    try:
        checker.parse_args(flags)
    except argparse.ArgumentError as error:  # what is wrong with the file is said in its name
        raise ConfigError(f"{path}: {error}") from error
    return parse(PlannerConfig, [*flags, *argv], prog=PROG, environ=environ)


def file_flags(cls: type, path: Path) -> list[str]:
    """The command line that a YAML file stands for: a mapping of flags, without the hyphens before them, to values.

    null leaves a flag away. Raises ConfigError for what is no such file, and for a key that is no flag of `cls`.
    """
    try:
        values = msgspec.yaml.decode(path.read_bytes(), type=dict[str, object] | None) or {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError) as error:  # the latter of PyYAML, for what is tagged as a time and is none
        raise ConfigError(f"{path} is not YAML with one `flag: value` in each line: {error}") from error
    types = {flag.removeprefix("--"): setting.type for setting in settings(cls) for flag in setting.option.flags}
    types.pop(_CONFIG_FLAG.removeprefix("--"), None)
    flags: list[str] = []
    for key, value in values.items():
        name = key.replace("_", "-")
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1)
            raise ConfigError(f"{path}: there is no {key!r}" + (f"; is {near[0]!r} meant?" if near else ""))
        flags += _as_flag(path, name, value, types[name])
    return flags


def _as_flag(path: Path, name: str, value: object, kind: type) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, bool | int | float | str) or isinstance(value, bool) != (kind is bool):
        raise ConfigError(f"{path}: {name} is {'true or false' if kind is bool else 'a value'}, not {value!r}")
    if kind is bool:
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}={value}"]
