import json

import msgspec
import pytest
from tokenizers import Tokenizer, decoders, models

from dynamo.llm.tokenizer_file import TokenizerFile
from dynamo.llm.vocabulary import Vocabulary
from dynamo.testing.tiny_model import byte_fallback_files, byte_level_files


def vocabulary_of(tokenizer_json: bytes) -> Vocabulary | None:
    return Vocabulary.of(Tokenizer.from_buffer(tokenizer_json), msgspec.json.decode(tokenizer_json, type=TokenizerFile))


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


def test_an_unknown_id_is_nothing() -> None:
    _, known = vocabulary(byte_level_files())
    assert (known.visible[10**6], known.raw(10**6)) == ("", b"")


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
