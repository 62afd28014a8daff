import json
from pathlib import Path

import pytest

from dynamo.errors import ConfigError
from dynamo.llm.gguf_metadata import GgufMetadata
from dynamo.llm.gguf_model import write_model_files


def test_model_directory_holds_what_the_file_says(tiny_gguf: Path, tmp_path: Path) -> None:
    write_model_files(GgufMetadata(tiny_gguf), tmp_path, sampling={"top_p": 0.9})
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "vocab_size": 261,
    }
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "top_p": 0.9,
    }
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "bos_token": "<|im_start|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 128,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<|endoftext|>",
    }
    template = (tmp_path / "chat_template.jinja").read_text(encoding="utf-8")
    assert template == "{% for m in messages %}{{ m.content }}é{% endfor %}"


def test_missing_key_is_named(tiny_gguf: Path) -> None:
    metadata = GgufMetadata(tiny_gguf)
    with pytest.raises(ConfigError, match=r"lacks general\.nothing as str"):
        metadata.text("general.nothing")
    with pytest.raises(ConfigError, match=r"lacks llama\.block_count as str"):
        metadata.text("llama.block_count")


def test_other_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a GGUF file, but long enough to be read as one")
    with pytest.raises(ConfigError, match="not a usable GGUF"):
        GgufMetadata(tmp_path / "x.gguf")
