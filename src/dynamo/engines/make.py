"""An engine by its name, for programs that run one within themselves."""

from collections.abc import Sequence

from dynamo.config import parse
from dynamo.engines.base import LLMEngine
from dynamo.engines.echo import EchoConfig, EchoEngine
from dynamo.engines.mocker.args import MockerConfig
from dynamo.engines.mocker.engine import create_engine
from dynamo.engines.vllm.environment import check_installed

ENGINES = ("vllm", "mocker", "echo")
DISAGGREGATED_ENGINES = ("vllm", "mocker")  # with workers that only prefill, and such as go on from there


def check_engine(name: str) -> None:
    """Raises ConfigError, saying what to do, when the engine `name` is not installed."""
    if name == "vllm":
        check_installed()


def make_engine(name: str, model_dir: str, flags: Sequence[str] = ()) -> LLMEngine:
    """The engine `name` for the model in `model_dir`, set up by the `flags` of its own command line.

    Raises ConfigError; ends the program like argparse for a wrong flag.
    """
    check_engine(name)
    arguments = ["--model", model_dir, *flags]
    if name == "vllm":
        from dynamo.engines.vllm.args import parse_command_line  # takes seconds

        _, engine_config = parse_command_line(arguments)
        from dynamo.engines.vllm.engine import VllmEngine

        return VllmEngine(engine_config)
    if name == "mocker":
        return create_engine(parse(MockerConfig, arguments, prog="python -m dynamo.mocker"))
    config = parse(EchoConfig, arguments, prog="python -m dynamo.echo")
    return EchoEngine(config.delay_ms / 1000)
