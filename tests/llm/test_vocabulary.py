import json

import msgspec
import pytest
from tokenizers import Tokenizer, decoders, models

from dynamo.llm.tokenizer_file import TokenizerFile
from dynamo.llm.vocabulary import BYTE_OF_LETTER, Vocabulary, byte_level
from dynamo.testing.tiny_model import byte_fallback_files, byte_level_files


def vocabulary_of(tokenizer_json: bytes) -> Vocabulary | None:
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    model_tokens = tokenizer.get_vocab(with_added_tokens=False)
    return Vocabulary.of(tokenizer, model_tokens, msgspec.json.decode(tokenizer_json, type=TokenizerFile))


def vocabulary(files: dict[str, bytes]) -> tuple[Tokenizer, Vocabulary]:
    tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    found = vocabulary_of(files["tokenizer.json"])
    assert found is not None
    return tokenizer, found


def test_byte_level_tokens() -> None:
    tokenizer, known = vocabulary(byte_level_files())
    ids = tokenizer.encode("é Hello").ids
    assert [known.raw(i) for i in ids] == [b"\xc3", b"\xa9", b" ", b"Hello"]
    assert [known.visible[i] for i in ids] == [b"\xc3", b"\xa9", " ", "Hello"]


def test_byte_fallback_tokens() -> None:
    tokenizer, known = vocabulary(byte_fallback_files())
    ids = tokenizer.encode("The é").ids
    assert [known.raw(i) for i in ids] == [b"<s>", b" The", b" ", b"\xc3", b"\xa9"]
    assert known.strips_first_space


def test_special_tokens_give_no_text_but_have_bytes() -> None:
    tokenizer, known = vocabulary(byte_level_files())
    end = tokenizer.token_to_id("<|im_end|>")
    assert end is not None
    assert (known.visible[end], known.complete[end], known.raw(end)) == ("", "<|im_end|>", b"<|im_end|>")


def test_an_added_token_is_written_as_it_is() -> None:
    tokenizer, known = vocabulary(byte_level_files())
    added = tokenizer.token_to_id("<tool call>")  # its space is no letter of the alphabet
    assert added is not None
    assert known.visible[added] == "<tool call>"


@pytest.mark.parametrize("files", [byte_level_files(), byte_fallback_files()], ids=["bytes", "fallback"])
def test_the_bytes_of_all_tokens_are_those_that_the_library_knows(files: dict[str, bytes]) -> None:
    tokenizer, known = vocabulary(files)
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    assert len(known.complete) == len(known.visible) == tokenizer.get_vocab_size()
    for i, (complete, visible) in enumerate(zip(known.complete, known.visible, strict=True)):
        assert visible == ("" if i in special else complete)
        if isinstance(complete, str):
            assert complete.removeprefix(" ") == tokenizer.decode([i], skip_special_tokens=False).removeprefix(" ")
            assert known.raw(i) == complete.encode()
        else:
            assert known.raw(i) == complete
            assert "\ufffd" in tokenizer.decode([i])


@pytest.mark.parametrize("token", ["<tool call>", "Ġ d", "é", "a\u00a0b", "\x7f", "你", "\u0144"])
def test_letters_are_bytes_if_all_are_letters(token: str) -> None:
    letters = {letter: bytes([byte]) for letter, byte in BYTE_OF_LETTER.items()}
    expected = b"".join(letters[letter] for letter in token) if letters.keys() >= set(token) else token.encode()
    assert byte_level(token) == expected


def test_every_byte_has_a_letter() -> None:
    assert byte_level("".join(BYTE_OF_LETTER)) == bytes(BYTE_OF_LETTER.values())
    assert sorted(BYTE_OF_LETTER.values()) == list(range(0x100))


def test_an_id_that_does_not_exist_is_nothing() -> None:
    content = json.loads(byte_level_files()["tokenizer.json"])
    content["model"]["vocab"]["zz"] = 900  # and none before it
    known = vocabulary_of(json.dumps(content).encode())
    assert known is not None
    assert (known.complete[899], known.visible[899], known.raw(900)) == ("", "", b"zz")
    assert [known.raw(i) for i in (-1, 899, 901, 2**40)] == [b""] * 4


@pytest.mark.parametrize(
    "decoder",
    [None, decoders.WordPiece(), decoders.BPEDecoder(), decoders.Metaspace(), decoders.Sequence([decoders.Fuse()])],
    ids=repr,
)
def test_other_tokenizers_are_not_of_this_kind(decoder: decoders.Decoder | None) -> None:
    tokenizer = Tokenizer(models.BPE())
    if decoder is not None:
        tokenizer.decoder = decoder
    assert vocabulary_of(tokenizer.to_str().encode()) is None


def test_a_replacement_of_something_else_is_not_of_this_kind() -> None:
    files = byte_fallback_files()
    content = json.loads(files["tokenizer.json"])
    content["decoder"]["decoders"][0]["content"] = "_"
    assert vocabulary_of(json.dumps(content).encode()) is None
