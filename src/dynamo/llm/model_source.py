"""Where a model comes from: the name a user gives becomes a directory."""

import re
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.llm.model_cache import cache_dir
from dynamo.llm.progress import Progress, terminal_progress
from dynamo.llm.smollm2 import NAME as SMOLLM2
from dynamo.llm.smollm2 import prepare_smollm2

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+", re.ASCII)


def resolve_model(name: str, *, weights: bool, progress: Progress | None = None) -> Path:
    """The directory of the model that `name` means, after preparing it if necessary.

    `name` is "smollm2", an existing directory, or a name on the Hugging Face hub such as "org/model". Without `weights`
    only the tokenizer and configuration files are fetched. Progress goes to stderr unless `progress` says otherwise.
    smollm2 is kept in cache_dir(), hub models in the hub's own cache, which other programs share.
    Raises ConfigError, saying what to do, when there is no such model or it can't be fetched.
    """
    progress = progress or terminal_progress()
    if name == SMOLLM2:
        return _smollm2(weights=weights, progress=progress)
    directory = Path(name).expanduser().absolute()
    if not directory.is_dir():
        if not _HUB_NAME.fullmatch(name):
            raise ConfigError(
                f"no model {name!r}: give smollm2, an existing directory, or a hub name such as org/model"
            )
        from dynamo.llm.model_hub import fetch_from_hub  # its import takes longer than starting a mocker

        directory = fetch_from_hub(name, weights=weights, progress=progress)
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{directory} is not a model directory: it has no config.json")
    return directory


def _smollm2(*, weights: bool, progress: Progress) -> Path:
    cache = cache_dir()
    try:
        return prepare_smollm2(cache, weights=weights, progress=progress)
    except OSError as error:
        raise ConfigError(
            f"cannot prepare smollm2 in {cache}: {error.strerror or error}. "
            "It needs a writable folder with 600 MB free; set DYN_CACHE_DIR to choose another."
        ) from error
