import json
import threading

import pytest
from tokenizers import Tokenizer as RawTokenizer

from dynamo.errors import ConfigError
from dynamo.llm.tokenizer import INLINE_CHARS_MAX, Tokenizer
from dynamo.testing.tiny_model import byte_fallback_files, byte_level_files


async def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True) -> list[int]:
    [ids] = await tokenizer.encode([text], add_special_tokens=add_special_tokens)
    return list(ids)


async def test_texts_become_the_ids_that_the_library_gives() -> None:
    files = byte_level_files()
    raw, tokenizer = RawTokenizer.from_buffer(files["tokenizer.json"]), Tokenizer(files)
    texts = ["Hello world", "", "The capital of France 你好"]
    encoded = await tokenizer.encode(texts, add_special_tokens=True)
    assert [list(ids) for ids in encoded] == [raw.encode(text).ids for text in texts]
    assert all(ids.typecode == "I" for ids in encoded)


async def test_special_tokens_around_a_text_are_a_choice() -> None:
    tokenizer = Tokenizer(byte_fallback_files())
    assert (await encode(tokenizer, "Hello"))[0] == tokenizer.bos_token_id == 1
    assert 1 not in await encode(tokenizer, "Hello", add_special_tokens=False)


async def test_a_bos_is_not_doubled() -> None:
    tokenizer = Tokenizer(byte_fallback_files())
    assert (await encode(tokenizer, "<s>Hello"))[:2] == [1, *(await encode(tokenizer, "Hello"))[1:2]]


async def test_a_bos_that_was_asked_for_stays() -> None:
    tokenizer = Tokenizer(byte_level_files())  # which adds none by itself
    ids = await encode(tokenizer, "<|im_start|><|im_start|>")
    assert ids == [1, 1]


async def test_long_texts_are_encoded_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(byte_level_files())
    threads = []
    encode_here = tokenizer._encode

    def watched(*args: object) -> object:
        threads.append(threading.current_thread() is threading.main_thread())
        return encode_here(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(tokenizer, "_encode", watched)
    half = "a" * (INLINE_CHARS_MAX // 2)
    await tokenizer.encode([half, half], add_special_tokens=False)
    [ids, _] = await tokenizer.encode([half, half + "a"], add_special_tokens=False)
    assert threads == [True, False]
    assert tokenizer.decode(list(ids)) == half


async def test_truncation_and_padding_in_the_file_have_no_effect() -> None:
    files = byte_level_files()
    raw = RawTokenizer.from_buffer(files["tokenizer.json"])
    raw.enable_truncation(2)
    raw.enable_padding(length=50)
    tokenizer = Tokenizer(files | {"tokenizer.json": raw.to_str().encode()})
    assert await encode(tokenizer, "Hello, hello there!") == await encode(Tokenizer(files), "Hello, hello there!")


def test_all_ends_of_a_sequence() -> None:
    files = byte_level_files() | {"config.json": json.dumps({"eos_token_id": [7, 2]}).encode()}
    tokenizer = Tokenizer(files)
    assert tokenizer.eos_token_ids == (2, 0, 7)
    assert Tokenizer({"tokenizer.json": files["tokenizer.json"]}).eos_token_ids == ()


def test_the_size_of_the_vocabulary_is_the_models() -> None:
    files = byte_level_files()
    assert Tokenizer(files | {"config.json": b'{"vocab_size": 512}'}).vocab_size == 512
    assert Tokenizer({"tokenizer.json": files["tokenizer.json"]}).vocab_size == Tokenizer(files).vocab_size


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]"])
def test_unusable_files(content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer({"tokenizer.json": content})


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer({})
