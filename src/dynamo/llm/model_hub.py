"""Models from the Hugging Face hub."""

from pathlib import Path
from typing import cast

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from dynamo.errors import ConfigError
from dynamo.llm.progress import Progress

_TEXT_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_WEIGHT_FILES = ["*.safetensors"]
# The hub client lets its HTTP library's errors through, and that library differs between its releases (requests, httpx,
# httpx2). The base of its own HTTP error is the base of theirs.
_HUB_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    HFValidationError,
    *cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__),
)


def fetch_from_hub(name: str, *, weights: bool, progress: Progress) -> Path:
    """The local directory of `name` ("org/model"), downloaded into the hub's own cache as far as it isn't there.

    Without `weights` only the tokenizer and configuration files. Raises ConfigError, saying what to do, when the hub
    can't be reached and the files aren't cached, or when it doesn't give them to us.
    """
    progress.note(f"Fetching {name} from the Hugging Face hub ...")
    patterns = _TEXT_FILES + (_WEIGHT_FILES if weights else [])
    try:
        # Subfolders hold the same weights once more in other formats (original/, onnx/).
        directory = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except _HUB_ERRORS as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"cannot fetch {name} from the Hugging Face hub: {reason}\nCheck the name and the network, set HF_TOKEN "
            "for a gated model or HF_ENDPOINT for a mirror, or give smollm2 or the path of a model directory."
        ) from error
    if weights and not any(directory.glob("*.safetensors")):
        raise ConfigError(f"{name} has no safetensors weights on the hub; give the path of a model directory instead")
    return directory
