"""The command line of `python -m dynamo.vllm`."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo.config import build_parser, option, parse_known
from dynamo.engines.config import DisaggregatedWorkerConfig
from dynamo.engines.vllm import environment
from dynamo.errors import ConfigError
from dynamo.kvbm.namespace import model_fingerprint
from dynamo.llm.model_source import resolve_model

if TYPE_CHECKING:
    from vllm.config import VllmConfig as EngineConfig

    from dynamo.engines.vllm.kvbm_settings import KvbmSettings

logger = logging.getLogger(__name__)

PROG = "python -m dynamo.vllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmConfig(DisaggregatedWorkerConfig):
    """Serve a model with vLLM. All other flags go to vLLM's engine: --help-engine lists them."""

    model: str | None = option(
        None, flag="--model", metavar="MODEL", help="what to serve: a directory, a hub name or smollm2"
    )
    served_model_name: str | None = option(
        None,
        flag="--served-model-name",
        metavar="NAME",
        help="name by which clients ask for it (default: the directory's, or the name on the hub)",
    )
    kv_handoff_timeout_s: int = option(
        60,
        flag="--kv-handoff-timeout",
        env="DYN_KV_HANDOFF_TIMEOUT",
        metavar="SECONDS",
        minimum=10,
        help="how long a prefill worker keeps the KV cache of a prompt that no decode worker asks for",
    )
    changeable_role: bool = option(
        False,
        flag="--changeable-role",
        env="DYN_CHANGEABLE_ROLE",
        help="a prefill worker may turn into a decode worker and back while it runs: vLLM's kv_role kv_both, which will"
        " be removed",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for a role that cannot change."""
        if self.changeable_role and self.kvbm.is_enabled:
            raise ConfigError(
                "--changeable-role and --kvbm-host-gb exclude each other: with the block manager, what becomes of a KV"
                " cache that cannot be loaded depends on the role"
            )

    def model_path(self) -> str:
        """The model's directory, after parse_command_line."""
        assert self.model is not None
        return self.model

    def model_name(self) -> str:
        """The name under which the model is served."""
        if self.served_model_name:
            return self.served_model_name
        path = Path(self.model_path())
        return path.resolve().name if path.is_dir() else self.model_path()


def parse_command_line(argv: Sequence[str]) -> "tuple[VllmConfig, EngineConfig]":
    """Our configuration and vLLM's. Imports vLLM, after it has set the environment for that.

    The configuration's model is a directory then, fetched where necessary; ConfigError when there is no such model.
    Exits like argparse: with code 2 and a message when a flag is wrong, ours or vLLM's, and after a help text.
    """
    config, rest = parse_known(VllmConfig, argv, prog=PROG)
    environment.check_installed()  # before anything is fetched for it
    if "--help-engine" in rest:
        _print_engine_help()
        raise SystemExit(0)
    if config.model is None:
        build_parser(VllmConfig, prog=PROG).error("--model is missing")
    directory = resolve_model(config.model, weights=True)
    config = replace(config, model=str(directory), served_model_name=config.model_name())
    environment.prepare(os.environ)
    environment.apply_log_level(os.environ)
    logger.info("loading vLLM")
    from dynamo.engines.vllm import engine_config  # takes seconds, and --help must not

    model_flags = ["--model", config.model_path(), "--served-model-name", config.model_name()]
    flags = [*model_flags, *rest]
    kvbm = _kvbm_settings(config) if config.kvbm.is_enabled else None
    return config, engine_config.parse(
        PROG,
        flags,
        config.worker_type,
        config.kv_handoff_timeout_s,
        changeable_role=config.changeable_role,
        kvbm=kvbm,
    )


def _kvbm_settings(config: VllmConfig) -> "KvbmSettings":
    from dynamo.engines.vllm.kvbm_settings import KvbmSettings, new_owner

    return KvbmSettings(
        socket=str(config.kvbm.socket_path),
        options=config.kvbm.pool_options(),
        owner=new_owner(),
        model=model_fingerprint(Path(config.model_path())),
        model_name=config.model_name(),
    )


def _print_engine_help() -> None:
    environment.prepare(os.environ)
    from dynamo.engines.vllm import engine_config

    engine_config.print_help(PROG)
