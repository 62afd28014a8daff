"""Builds a tokenizer.json from what a GGUF file says about its tokenizer."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dynamo.errors import ConfigError
from dynamo.llm.gguf_metadata import GgufMetadata

# gguf.TokenType
_CONTROL = 3
_USER_DEFINED = 4


def build_tokenizer(metadata: GgufMetadata) -> Tokenizer:
    """Byte-level BPE as SmolLM and SmolLM2 use it.

    Digits stand alone, as in the publisher's own tokenizer. (transformers' conversion of GGUF files forgets that: it
    differs for two or more white spaces before a digit.) Raises ConfigError for other kinds of tokenizer.
    """
    family = metadata.text("tokenizer.ggml.model"), metadata.text("tokenizer.ggml.pre")
    if family != ("gpt2", "smollm"):
        raise ConfigError(f"GGUF tokenizers of kind {'/'.join(family)} are not supported; use a safetensors directory")
    tokens = metadata.texts("tokenizer.ggml.tokens")
    merges = [_split_merge(merge) for merge in metadata.texts("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata.integers("tokenizer.ggml.token_type")
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind == _CONTROL)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer


def tokenizer_config(metadata: GgufMetadata, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    special = {
        name: tokenizer.id_to_token(metadata.integer(f"tokenizer.ggml.{key}_token_id"))
        for name, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("pad_token", "padding"),
            ("unk_token", "unknown"),
        )
    }
    return special | {
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.integer("llama.context_length"),
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
    }


def _split_merge(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
