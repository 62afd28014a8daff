"""What the small files of a model directory say: special tokens, ends of a sequence, defaults for sampling."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from dynamo.errors import ConfigError
from dynamo.protocols.openai.messages import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What generation_config.json sets for requests that don't say; None: the engine's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read_json(files: Mapping[str, bytes], name: str) -> JsonObject:
    """The object in the file called `name`, empty where there is no such file; ConfigError when it is not one."""
    if name not in files:
        return {}
    try:
        return msgspec.json.decode(files[name], type=JsonObject)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{name} is not a JSON object: {error}") from error


def special_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """The special tokens by name ("bos_token", "eos_token", …), as transformers gives them to a chat template."""
    config = read_json(files, "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # an old directory, in which the other file has the last word
        config |= read_json(files, "special_tokens_map.json")
    extra = config.get("extra_special_tokens")
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    named |= extra if isinstance(extra, dict) else {}
    texts = {name: _token_text(value) for name, value in named.items()}
    return {name: text for name, text in texts.items() if text is not None}


def eos_ids(config: JsonObject) -> list[int]:
    """The `eos_token_id` of config.json or generation_config.json, which is one id or several."""
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return [item for item in values if type(item) is int and item >= 0]


def vocabulary_size(config: JsonObject) -> int | None:
    """The `vocab_size` of config.json, which models of several modalities keep one level deeper."""
    text_config = config.get("text_config")
    for level in (config, text_config if isinstance(text_config, dict) else {}):
        if type(size := level.get("vocab_size")) is int and size > 0:
            return size
    return None


def sampling_defaults(files: Mapping[str, bytes]) -> SamplingDefaults:
    """The defaults in generation_config.json; a value that no request could have is left out."""
    config = read_json(files, "generation_config.json")
    temperature, top_p = _number(config, "temperature"), _number(config, "top_p")
    min_p, penalty = _number(config, "min_p"), _number(config, "repetition_penalty")
    top_k = config.get("top_k")
    return SamplingDefaults(
        temperature=temperature if temperature is not None and temperature >= 0 else None,
        top_p=top_p if top_p is not None and 0 < top_p <= 1 else None,
        top_k=top_k if type(top_k) is int and top_k >= -1 else None,
        min_p=min_p if min_p is not None and 0 <= min_p <= 1 else None,
        repetition_penalty=penalty if penalty is not None and penalty > 0 else None,
    )


def _number(config: JsonObject, name: str) -> float | None:
    value = config.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _token_text(value: object) -> str | None:
    """A token is its text, or an object that has it as "content"."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
