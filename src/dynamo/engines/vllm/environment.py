"""What vLLM reads from the environment before or while it is imported."""

import importlib.util
import logging
from collections.abc import Iterable, Mapping, MutableMapping

from dynamo.engines.vllm.ownership import PLUGIN_NAME
from dynamo.errors import ConfigError
from dynamo.transfer import nixl_library

# An engine process starts as a fresh interpreter: a forked one would inherit the worker's sockets and locks.
_START_METHOD = "spawn"
_LOG_LEVELS = {
    "trace": "DEBUG",
    "debug": "DEBUG",
    "info": "INFO",
    "warn": "WARNING",
    "warning": "WARNING",
    "error": "ERROR",
    "off": "CRITICAL",
}
_QUIET = ("ERROR", "CRITICAL")
_NIXL_LOG_LEVELS = {"WARNING": "WARN", "CRITICAL": "FATAL"}  # where its names are not vLLM's
_TORCH_CPP_EXTENSION = "torch.utils.cpp_extension"  # warns where there is a compiler of CUDA, but no GPU
FEW_CPUS = 4


def check_installed() -> None:
    """Raises ConfigError, saying what to do, when there is no vLLM."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "vLLM is not installed: run scripts/install for a CPU, install this package with its extra vllm for a GPU, "
            "or take the mocker engine"
        )


def prepare(environ: MutableMapping[str, str]) -> None:
    """Sets what vLLM must find when it is imported; what the user has set stays."""
    environ.setdefault("VLLM_LOGGING_LEVEL", log_level(environ.get("DYN_LOG", "")))
    environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # where ours go
    environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", _START_METHOD)
    # Python's resource tracker outlives killed processes to clean up after them, and would tell the user each time.
    ignored = "ignore:resource_tracker:UserWarning"
    level = environ["VLLM_LOGGING_LEVEL"]
    nixl_library.set_defaults(environ)
    environ.setdefault("NIXL_LOG_LEVEL", _NIXL_LOG_LEVELS.get(level, level))
    if level in _QUIET:
        ignored += ",ignore::FutureWarning"  # vLLM's own use of torch
        environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        environ.setdefault("TRANSFORMERS_VERBOSITY", level.lower())  # of fields in generation configs
    environ.setdefault("PYTHONWARNINGS", ignored)
    allowed = environ.get("VLLM_PLUGINS")
    if allowed and PLUGIN_NAME not in allowed.split(","):
        environ["VLLM_PLUGINS"] = f"{allowed},{PLUGIN_NAME}"


def log_level(dyn_log: str) -> str:
    """The level of vLLM's own log lines for a value of DYN_LOG: errors only, unless it asks for something else.

    At its start vLLM warns a dozen times of what nobody needs to change. "debug" speaks for everything,
    "info,vllm=warn" for vLLM alone.
    """
    levels = dict(_directive(part) for part in dyn_log.split(","))
    return _LOG_LEVELS.get(levels.get("vllm", levels.get("", "")), "ERROR")


def apply_log_level(environ: Mapping[str, str]) -> None:
    """For the time until vLLM does this itself: it warns already while it is imported, and torch with it."""
    level = logging.getLevelNamesMapping().get(environ.get("VLLM_LOGGING_LEVEL", "").upper())
    if level is not None:
        logging.getLogger("vllm").setLevel(level)
        logging.getLogger(_TORCH_CPP_EXTENSION).setLevel(level)


def bind_threads(environ: MutableMapping[str, str], cpus: Iterable[int], ranks: int = 1) -> None:
    """Chooses the CPUs of the OpenMP threads of each data-parallel rank, unless the user has.

    By itself vLLM takes one CPU per core and leaves one core free, and ranks on one NUMA node take the same ones. That
    is right on a large machine, but on a small one it gives half of it away.
    """
    available = sorted(cpus)
    if ranks <= len(available) <= FEW_CPUS:
        shares = (available[rank::ranks] for rank in range(ranks))
        environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "|".join(",".join(map(str, share)) for share in shares))


def _directive(part: str) -> tuple[str, str]:
    target, _, level = part.strip().rpartition("=")
    return target, level.lower()
