"""vLLM's configuration from vLLM's flags."""

import argparse
import os
from collections.abc import Sequence

from pydantic import ValidationError
from vllm.config import VllmConfig as EngineConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMError
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from dynamo.engines.vllm import cpu_defaults, disagg, kvbm_layout, kvbm_settings
from dynamo.engines.vllm.kvbm_settings import KvbmSettings
from dynamo.errors import ConfigError
from dynamo.protocols.model_card import WorkerType


def print_help(prog: str) -> None:
    """Prints all flags of vLLM's engine. vLLM's own method would only name their groups."""
    print(argparse.ArgumentParser.format_help(_parser(prog)))


def parse(
    prog: str,
    argv: Sequence[str],
    role: WorkerType = WorkerType.Aggregated,
    handoff_timeout_s: int = 60,
    *,
    changeable_role: bool = False,
    kvbm: KvbmSettings | None = None,
) -> EngineConfig:
    """Exits with code 2 and a message where vLLM does not know a flag or does not accept its value.

    Raises ConfigError where vLLM cannot have the `role`, or the block manager.
    """
    parser = _parser(prog)
    args = AsyncEngineArgs.from_cli_args(parser.parse_args(list(argv)))
    try:
        if current_platform.is_cpu():
            cpu_defaults.choose(args, os.environ, role)
        chosen_by_user = args.kv_transfer_config is not None
        disagg.choose_connector(args, role, handoff_timeout_s, changeable=changeable_role)
        if kvbm is not None:
            if chosen_by_user:
                raise ConfigError("--kv-transfer-config and --kvbm-host-gb exclude each other: both choose a connector")
            args.kv_transfer_config = kvbm_settings.with_kvbm(args.kv_transfer_config, kvbm)
        config = args.create_engine_config(UsageContext.ENGINE_CONTEXT)
        if kvbm is not None:
            kvbm_layout.check_engine(config)
        return config
    except (OSError, ValueError, VLLMError) as error:
        parser.error(_explanation(error))


def _parser(prog: str) -> argparse.ArgumentParser:
    usage = f"{prog} --model MODEL [flags of vLLM's engine, see --help-engine]"
    parser = AsyncEngineArgs.add_cli_args(
        FlexibleArgumentParser(prog=prog, usage=usage, add_help=False, allow_abbrev=False)
    )
    assert isinstance(parser, argparse.ArgumentParser)
    if current_platform.is_cpu():
        parser.set_defaults(**cpu_defaults.PARSER_DEFAULTS)
    return parser


def _explanation(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(": ".join([*map(str, detail["loc"]), detail["msg"]]) for detail in error.errors())
