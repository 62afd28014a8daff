"""A GGUF file small enough to convert in a blink; a fleet of workers and the models that they announce."""

from collections.abc import AsyncIterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from dynamo.llm.model_manager import ModelManager

from .deployed import Deployed, deployed, write_model

HIDDEN = 64
FEED_FORWARD = 96
HEADS = 4
KV_HEADS = 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture
async def fleet() -> AsyncIterator[Deployed]:
    async with deployed() as made:
        yield made


@pytest.fixture
async def manager(fleet: Deployed) -> AsyncIterator[ModelManager]:
    made = fleet.manager()
    async with made.following():
        yield made


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_model(tmp_path / "other", other=True)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama model of one layer with random weights in the same formats as SmolLM2's."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["h e", "l l"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}é{% endfor %}")
    _add_tensors(writer, vocab_size=len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tensors(writer: gguf.GGUFWriter, *, vocab_size: int) -> None:
    random = np.random.default_rng(0)
    kv = HIDDEN // HEADS * KV_HEADS
    for name, shape, kind in (
        ("token_embd", (vocab_size, HIDDEN), gguf.GGMLQuantizationType.Q8_0),
        ("output_norm", (HIDDEN,), gguf.GGMLQuantizationType.F32),
        ("blk.0.attn_norm", (HIDDEN,), gguf.GGMLQuantizationType.F32),
        ("blk.0.attn_q", (HIDDEN, HIDDEN), gguf.GGMLQuantizationType.Q4_1),
        ("blk.0.attn_k", (kv, HIDDEN), gguf.GGMLQuantizationType.Q4_1),
        ("blk.0.attn_v", (kv, HIDDEN), gguf.GGMLQuantizationType.Q4_1),
        ("blk.0.attn_output", (HIDDEN, HIDDEN), gguf.GGMLQuantizationType.Q4_1),
        ("blk.0.ffn_norm", (HIDDEN,), gguf.GGMLQuantizationType.F32),
        ("blk.0.ffn_gate", (FEED_FORWARD, HIDDEN), gguf.GGMLQuantizationType.Q4_1),
        ("blk.0.ffn_up", (FEED_FORWARD, HIDDEN), gguf.GGMLQuantizationType.Q4_1),
        ("blk.0.ffn_down", (HIDDEN, FEED_FORWARD), gguf.GGMLQuantizationType.Q4_1),
    ):
        weights = random.standard_normal(shape, dtype=np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)
