"""Turns the quantized tensors of a GGUF file of the Llama family into bfloat16 safetensors, with numpy alone."""

import json
import math
import re
from pathlib import Path
from typing import Any, BinaryIO

from dynamo.errors import ConfigError
from dynamo.llm.gguf_metadata import GgufMetadata
from dynamo.llm.progress import Progress

_BYTES_PER_WEIGHT = 2
_TOP_LEVEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)")


def write_weights(metadata: GgufMetadata, safetensors_path: Path, *, progress: Progress) -> None:
    """Writes all weights into one safetensors file, tensor by tensor to keep memory low.

    Raises ConfigError for a tensor that a Llama model doesn't have, OSError when writing fails.
    """
    heads = {
        "attn_q": metadata.integer("llama.attention.head_count"),
        "attn_k": metadata.integer("llama.attention.head_count_kv"),
    }
    tensors = metadata.tensors()
    total_bytes = sum(_size_bytes(tensor) for tensor in tensors)
    with open(safetensors_path, "wb") as file, progress.measure("Converting the weights", total_bytes) as report:
        _write_header(file, tensors)
        done_bytes = 0
        for tensor in tensors:
            file.write(_bfloat16(tensor, heads.get(tensor.name.split(".")[-2])))
            done_bytes += _size_bytes(tensor)
            report(done_bytes)


def tensor_name(gguf_name: str) -> str:
    """transformers' name of a Llama tensor: blk.0.attn_q.weight -> model.layers.0.self_attn.q_proj.weight."""
    stem, _, suffix = gguf_name.rpartition(".")
    if stem in _TOP_LEVEL:
        return f"{_TOP_LEVEL[stem]}.{suffix}"
    in_layer = _LAYER_TENSOR.fullmatch(stem)
    if in_layer is None or in_layer[2] not in _IN_LAYER:
        raise ConfigError(f"unexpected tensor {gguf_name} in a GGUF file of a Llama model")
    return f"model.layers.{in_layer[1]}.{_IN_LAYER[in_layer[2]]}.{suffix}"


def _write_header(file: BinaryIO, tensors: list[Any]) -> None:
    # https://huggingface.co/docs/safetensors: u64 length, JSON padded by spaces, then the tensors without gaps.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + _size_bytes(tensor)
        header[tensor_name(tensor.name)] = {"dtype": "BF16", "shape": _shape(tensor), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)


def _shape(tensor: Any) -> list[int]:
    return [int(size) for size in reversed(tensor.shape)]  # GGUF counts the innermost dimension first


def _size_bytes(tensor: Any) -> int:
    return math.prod(_shape(tensor)) * _BYTES_PER_WEIGHT


def _bfloat16(tensor: Any, heads: int | None) -> bytes:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    weights = dequantize(tensor.data, tensor.tensor_type)
    if heads is not None:
        # llama.cpp keeps the two halves of each rotary pair side by side, transformers one half after the other.
        weights = weights.reshape(heads, -1, 2, weights.shape[-1]).swapaxes(1, 2).reshape(weights.shape)
    return bytes(quantize(weights, GGMLQuantizationType.BF16).tobytes())
