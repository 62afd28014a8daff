"""`python -m dynamo.cli.flags`: the reference of all flags, made from the configuration classes."""

import sys
from collections.abc import Sequence

from dynamo.cli.deployment import ServeConfig
from dynamo.cli.profile import ProfileConfig
from dynamo.cli.run import RunConfig
from dynamo.config import Setting, settings
from dynamo.engines.config import WorkerConfig
from dynamo.engines.echo import EchoConfig
from dynamo.engines.mocker.args import MockerConfig
from dynamo.engines.vllm.args import VllmConfig
from dynamo.frontend.config import FrontendConfig
from dynamo.frontend.overload_config import OverloadConfig
from dynamo.kvbm.config import KvbmOptions, ServiceConfig
from dynamo.llm.router_service import RouterConfig
from dynamo.router.config import KvRouterConfig
from dynamo.router.disagg import DisaggConfig
from dynamo.runtime.config import RuntimeConfig
from dynamo.simulator.config import SimulationConfig

_PAGES: Sequence[tuple[str, type, tuple[type, ...]]] = (
    ("Every process", RuntimeConfig, ()),
    ("KV routing: frontend, dynamo serve, router", KvRouterConfig, ()),
    ("Disaggregation: frontend, dynamo serve; dynamo config sets them live", DisaggConfig, ()),
    ("Overload: frontend, dynamo serve", OverloadConfig, ()),
    ("Block manager: workers with a KV cache, dynamo serve", KvbmOptions, ()),
    ("python -m dynamo.frontend", FrontendConfig, (RuntimeConfig, KvRouterConfig, DisaggConfig, OverloadConfig)),
    ("python -m dynamo.router", RouterConfig, (RuntimeConfig, KvRouterConfig)),
    ("dynamo serve", ServeConfig, (FrontendConfig, KvbmOptions)),
    ("dynamo run", RunConfig, ()),
    ("dynamo simulate", SimulationConfig, (KvRouterConfig, KvbmOptions)),
    ("dynamo profile", ProfileConfig, ()),
    ("Every worker", WorkerConfig, (RuntimeConfig,)),
    ("python -m dynamo.vllm", VllmConfig, (WorkerConfig, KvbmOptions)),
    ("python -m dynamo.mocker", MockerConfig, (WorkerConfig, KvbmOptions)),
    ("python -m dynamo.kvbm", ServiceConfig, (RuntimeConfig,)),
    ("python -m dynamo.echo", EchoConfig, (WorkerConfig,)),
)

_INTRODUCTION = """\
# Flags and variables

A flag wins over the environment variable, which wins over the default. A wrong flag ends the program with a message; a
wrong variable is a warning. Made by `python -m dynamo.cli.flags`.
"""

_VARIABLES_ONLY = """\
## Variables without a flag

- `DYN_LOG`: what is logged on stderr: `trace`, `debug`, `info` (default), `warn`, `error`, `off`, or levels for single
  modules, as in `info,dynamo.router=debug,vllm=warn`. vLLM's own lines have level `error` unless this (or
  `VLLM_LOGGING_LEVEL`) says otherwise.
- `DYN_LOGGING_JSONL`: `1` logs JSON lines.
- `DYN_API_KEYS`: keys that the frontend takes, with commas between them, in place of `--api-keys-file`: without limits,
  and for all models.
- `DYN_REQUEST_PLANE_SECRET`: the deployment's secret, where no `--request-plane-secret-file` holds it.
- `DYN_KERNEL`: `python` keeps the router from using its extension in C++; `dynamo doctor` tells which one is in use.
- `DYN_CACHE_DIR`: where prepared models are kept (default: `$XDG_CACHE_HOME/dynamo` or `~/.cache/dynamo`).
- `DYN_VENV`, `PYTHON`: for `scripts/`: the virtual environment (default: `.venv`) and the interpreter to make it with.
"""


def reference() -> str:
    """docs/flags.md."""
    return "\n".join([_INTRODUCTION, *(_page(title, cls, bases) for title, cls, bases in _PAGES), _VARIABLES_ONLY])


def _page(title: str, cls: type, bases: tuple[type, ...]) -> str:
    elsewhere = {_spellings(setting) for base in bases for setting in settings(base)}
    rows = [_row(setting) for setting in settings(cls) if _spellings(setting) not in elsewhere]
    return "\n".join([f"## {title}\n", "| flag | variable | default | |", "|---|---|---|---|", *rows, ""])


def _spellings(setting: Setting) -> tuple[str | None, ...]:
    return (*setting.option.flags, setting.option.env)


def _row(setting: Setting) -> str:
    described = setting.option
    flags = ", ".join(f"`{flag}`" for flag in described.flags)
    choices = f" ({', '.join(described.choices)})" if described.choices else ""
    default = "" if setting.default is None else f"`{setting.default}`"
    return f"| {flags} | {f'`{described.env}`' if described.env else ''} | {default} | {described.help}{choices} |"


if __name__ == "__main__":
    sys.stdout.write(reference())
