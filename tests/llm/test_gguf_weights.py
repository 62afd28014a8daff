import json
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo.errors import ConfigError
from dynamo.llm.gguf_metadata import GgufMetadata
from dynamo.llm.gguf_weights import tensor_name, write_weights
from dynamo.llm.progress import SilentProgress

_CONVERT_BY_TRANSFORMERS = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
folder, file, target = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.bfloat16)
weights = model.state_dict()
del weights["lm_head.weight"]  # the embeddings once more
save_file(weights, target, metadata={"format": "pt"})
"""


def read_safetensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of each tensor."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    assert header.pop("__metadata__") == {"format": "pt"}
    spans = {name: [start + offset for offset in entry["data_offsets"]] for name, entry in header.items()}
    assert max(end for _, end in spans.values()) == len(content)
    return {name: (e["dtype"], e["shape"], content[slice(*spans[name])]) for name, e in header.items()}


def test_header_describes_every_tensor_in_transformers_names(tiny_gguf: Path, tmp_path: Path) -> None:
    write_weights(GgufMetadata(tiny_gguf), tmp_path / "model.safetensors", progress=SilentProgress())
    tensors = read_safetensors(tmp_path / "model.safetensors")
    shapes = {name: shape for name, (_, shape, _) in tensors.items()}
    assert len(shapes) == 11
    assert shapes["model.embed_tokens.weight"] == [261, 64]
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == [32, 64]
    assert shapes["model.layers.0.mlp.down_proj.weight"] == [64, 96]
    assert {kind for kind, _, _ in tensors.values()} == {"BF16"}


def test_unknown_tensor_is_refused() -> None:
    assert tensor_name("blk.12.attn_q.weight") == "model.layers.12.self_attn.q_proj.weight"
    with pytest.raises(ConfigError, match="ffn_gate_exps"):
        tensor_name("blk.0.ffn_gate_exps.weight")


@pytest.mark.vllm
def test_weights_are_bit_for_bit_those_of_transformers(tiny_gguf: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference.safetensors"
    command = [sys.executable, "-c", _CONVERT_BY_TRANSFORMERS, str(tiny_gguf.parent), tiny_gguf.name, str(reference)]
    subprocess.run(command, check=True, timeout=100, capture_output=True)
    write_weights(GgufMetadata(tiny_gguf), tmp_path / "model.safetensors", progress=SilentProgress())
    assert read_safetensors(tmp_path / "model.safetensors") == read_safetensors(reference)
