"""Turns a GGUF file of the Llama family into a normal model directory, without torch or transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamo.errors import ConfigError
from dynamo.llm.gguf_metadata import GgufMetadata
from dynamo.llm.gguf_tokenizer import build_tokenizer, tokenizer_config


def write_model_files(metadata: GgufMetadata, directory: Path, *, sampling: Mapping[str, float]) -> None:
    """Writes everything but the weights into the existing `directory`.

    That is tokenizer.json, tokenizer_config.json, chat_template.jinja, config.json and generation_config.json, in which
    `sampling` is what holds for requests that don't say ("temperature", "top_p", …).
    Raises ConfigError for a GGUF of another family or with another kind of tokenizer, OSError when writing fails.
    """
    tokenizer = build_tokenizer(metadata)
    _write_text(directory / "tokenizer.json", tokenizer.to_str())
    _write_text(directory / "chat_template.jinja", metadata.text("tokenizer.chat_template"))
    _write_json(directory / "tokenizer_config.json", tokenizer_config(metadata, tokenizer))
    _write_json(directory / "config.json", model_config(metadata))
    _write_json(directory / "generation_config.json", _token_ids(metadata) | dict(sampling))


def model_config(metadata: GgufMetadata) -> dict[str, Any]:
    """The content of config.json, in the names of transformers' LlamaConfig."""
    architecture = metadata.text("general.architecture")
    if architecture != "llama":
        raise ConfigError(f"GGUF files of the {architecture} family are not supported; use a safetensors directory")
    return _token_ids(metadata) | {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "head_dim": metadata.integer("llama.rope.dimension_count"),
        "hidden_act": "silu",
        "hidden_size": metadata.integer("llama.embedding_length"),
        "intermediate_size": metadata.integer("llama.feed_forward_length"),
        "max_position_embeddings": metadata.integer("llama.context_length"),
        "model_type": "llama",
        "num_attention_heads": metadata.integer("llama.attention.head_count"),
        "num_hidden_layers": metadata.integer("llama.block_count"),
        "num_key_value_heads": metadata.integer("llama.attention.head_count_kv"),
        "rms_norm_eps": metadata.real("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.real("llama.rope.freq_base"),
        "tie_word_embeddings": "output.weight" not in {tensor.name for tensor in metadata.tensors()},
        "vocab_size": metadata.integer("llama.vocab_size"),
    }


def _token_ids(metadata: GgufMetadata) -> dict[str, Any]:
    return {
        "bos_token_id": metadata.integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.integer("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.integer("tokenizer.ggml.padding_token_id"),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
