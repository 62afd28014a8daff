import json
from typing import Any

import pytest

from dynamo.errors import ConfigError
from dynamo.llm.tokenizer_config import (
    SamplingDefaults,
    eos_ids,
    read_json,
    sampling_defaults,
    special_tokens,
    vocabulary_size,
)


def files(**contents: Any) -> dict[str, bytes]:
    return {f"{name}.json": json.dumps(content).encode() for name, content in contents.items()}


def test_special_tokens_are_texts_or_objects() -> None:
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "pad_token": None,
        "image_token": "<image>",
        "extra_special_tokens": {"eom_token": "<eom>"},
        "add_bos_token": True,
        "model_max_length": 5,
    }
    expected = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>", "eom_token": "<eom>"}
    assert special_tokens(files(tokenizer_config=config)) == expected


def test_an_old_directory_keeps_them_in_a_file_of_their_own() -> None:
    both = files(tokenizer_config={"eos_token": "a"}, special_tokens_map={"eos_token": "b", "bos_token": "c"})
    assert special_tokens(both) == {"eos_token": "b", "bos_token": "c"}
    newer = both | files(tokenizer_config={"eos_token": "a", "added_tokens_decoder": {}})
    assert special_tokens(newer) == {"eos_token": "a"}


@pytest.mark.parametrize(
    ("value", "ids"), [(None, []), (2, [2]), ([2, 5], [2, 5]), ("2", []), (True, []), ([-1, 3], [3])]
)
def test_eos_ids(value: object, ids: list[int]) -> None:
    assert eos_ids({"eos_token_id": value}) == ids


def test_vocabulary_size() -> None:
    assert vocabulary_size({"vocab_size": 5}) == 5
    assert vocabulary_size({"text_config": {"vocab_size": 6}}) == 6
    assert vocabulary_size({"text_config": None}) is None


def test_sampling_defaults() -> None:
    config = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0, "repetition_penalty": 1, "do_sample": True}
    assert sampling_defaults(files(generation_config=config)) == SamplingDefaults(
        temperature=0.6, top_p=0.9, top_k=20, min_p=0.0, repetition_penalty=1.0
    )
    assert sampling_defaults({}) == SamplingDefaults()


def test_defaults_that_no_request_could_have_are_left_out() -> None:
    config = {"temperature": -1, "top_p": 0, "top_k": "20", "min_p": True, "repetition_penalty": 0}
    assert sampling_defaults(files(generation_config=config)) == SamplingDefaults()


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"a": "\xff"}', b"[" * 100_000])
def test_broken_files(content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_json({"config.json": content}, "config.json")
