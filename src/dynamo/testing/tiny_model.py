"""Model directories of a few kilobytes, as file name -> content: real tokenizers, no weights.

They spell text in the two ways that models do: `byte_level_files` like GPT-2, Llama 3 and Qwen, `byte_fallback_files`
like Llama 2, Mistral and Gemma.
"""

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = (
    "The quick brown fox jumps over the lazy dog. What is the capital of France? The capital of France is Paris.",
    "Hello world, hello there! This is a tiny vocabulary; it knows a few words and all bytes.",
)
_SPACE = "▁"
_UNKNOWN = "<unk>"


def byte_level_files(**generation_config: Any) -> dict[str, bytes]:
    """Byte-level BPE without a BOS; chat turns end with <|im_end|>, texts with <|endoftext|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens([AddedToken("<tool call>", special=False)])
    return _files(
        tokenizer,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        {"eos_token_id": [_id(tokenizer, "<|im_end|>"), _id(tokenizer, "<|endoftext|>")]} | generation_config,
    )


def byte_fallback_files(**generation_config: Any) -> dict[str, bytes]:
    """SentencePiece-like BPE: "▁" is a space, <0x00> to <0xFF> are bytes, and a text begins with <s>."""
    tokenizer = Tokenizer(models.BPE(*_pieces(), unk_token=_UNKNOWN, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([_UNKNOWN, "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", _id(tokenizer, "<s>"))]
    )
    return _files(
        tokenizer,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": _UNKNOWN},
        {"eos_token_id": _id(tokenizer, "</s>")} | generation_config,
    )


def _pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary with all byte tokens, and its merges."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = [_UNKNOWN, "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(0x100)), *model["vocab"]]
    return {token: i for i, token in enumerate(tokens)}, [tuple(merge) for merge in model["merges"]]


def _files(tokenizer: Tokenizer, config: dict[str, Any], generation_config: dict[str, Any]) -> dict[str, bytes]:
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "generation_config.json": json.dumps(generation_config).encode(),
        "config.json": json.dumps({"vocab_size": tokenizer.get_vocab_size()}).encode(),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
    }


def _id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id
