import json
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dynamo.llm.least_tokens import LeastTokens
from dynamo.llm.tokenizer_file import TokenizerFile
from dynamo.testing.tiny_model import byte_fallback_files, byte_level_files

Change = Callable[[dict[str, Any]], object]

NFC = {"type": "NFC"}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\p{L}+"}, "behavior": "Isolated", "invert": False}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}


def changed(files: dict[str, bytes], change: Change | None = None) -> tuple[Tokenizer, LeastTokens | None]:
    """The tokenizer in `files` after a change to its tokenizer.json."""
    content = json.loads(files["tokenizer.json"])
    if change is not None:
        change(content)
    tokenizer_json = json.dumps(content).encode()
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    model_tokens = tokenizer.get_vocab(with_added_tokens=False).keys()
    return tokenizer, LeastTokens.of(tokenizer, model_tokens, msgspec.json.decode(tokenizer_json, type=TokenizerFile))


def known(files: dict[str, bytes], change: Change | None = None) -> tuple[Tokenizer, LeastTokens]:
    tokenizer, least_tokens = changed(files, change)
    assert least_tokens is not None
    return tokenizer, least_tokens


def without_letters(content: dict[str, Any]) -> None:
    """As in SmolLM2, whose vocabulary lacks some bytes."""
    for letter in ("Ĕ", "é", "x"):  # 0x14, 0xE9 and x
        del content["model"]["vocab"][letter]
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "x" not in "".join(pair)]


def with_nfc(content: dict[str, Any]) -> None:
    content["normalizer"] = NFC
    added(content="\u0390" * 20)(content)


def without_letters_but_with_nfc(content: dict[str, Any]) -> None:
    without_letters(content)
    content.update(normalizer=NFC)


def added(**token: Any) -> Change:
    default = {"id": 500, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return lambda content: content["added_tokens"].append(default | token)


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [*steps]}


WORD_PIECE = {
    "type": "WordPiece",
    "unk_token": "<unk>",
    "continuing_subword_prefix": "",
    "max_input_chars_per_word": 100,
}
BYTE_LEVEL_STEP = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
BOUNDED = {
    "bytes": known(byte_level_files()),
    "bytes, NFC": known(byte_level_files(), with_nfc),
    "bytes, cut by a pattern": known(
        byte_level_files(), lambda content: content.update(pre_tokenizer=sequence(SPLIT, BYTE_LEVEL_STEP))
    ),
    "bytes, some unknown": known(byte_level_files(), without_letters),
    "fallback": known(byte_fallback_files()),
    "fallback, NFC": known(byte_fallback_files(), lambda content: content["normalizer"]["normalizers"].append(NFC)),
    "fallback, Metaspace": known(
        byte_fallback_files(), lambda content: content.update(normalizer=None, pre_tokenizer=METASPACE)
    ),
    "fallback, an added token": known(byte_fallback_files(), added(content="a b c d ")),
}

WORDS = ["Hello", " there", "<tool call>", "a b c d ", "<|im_end|>", "<s>", "<0x0A>", "▁▁", "\n ", "  ", "\xa0 "]
CHARACTERS = "x▁é你\U0001f600\U00040000\x14\t "
COMPOSED = ["e\u0301", "\u1fbe\u0308\u0301", "\u0301"]
PIECES = st.sampled_from([*WORDS, *CHARACTERS, *COMPOSED])
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=3))).map("".join)


@pytest.mark.parametrize(("tokenizer", "least_tokens"), BOUNDED.values(), ids=BOUNDED.keys())
@settings(deadline=None)
@given(text=TEXTS, times=st.sampled_from([1, 50]))
def test_no_text_has_fewer_tokens(tokenizer: Tokenizer, least_tokens: LeastTokens, text: str, times: int) -> None:
    text *= times
    assert least_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize(("tokenizer", "least_tokens"), BOUNDED.values(), ids=BOUNDED.keys())
def test_the_longest_token_alone_is_one(tokenizer: Tokenizer, least_tokens: LeastTokens) -> None:
    longest = max(
        (tokenizer.decode([i], skip_special_tokens=False) for i in range(tokenizer.get_vocab_size())), key=len
    )
    assert least_tokens(longest) == 1


def test_bytes_count_where_there_are_no_words() -> None:
    _, least_tokens = BOUNDED["bytes"]
    longest = len("<|endoftext|>")
    assert [least_tokens("x" * n) for n in (0, 1, longest, longest + 1)] == [0, 1, 1, 2]
    assert least_tokens("你" * longest) == 3


def test_words_count_where_no_token_ends_one_inside() -> None:
    text = "a bc\n  d▁" * 100  # a line's end does not count
    _, least_tokens = BOUNDED["fallback"]
    assert least_tokens(text) == 200
    _, least_tokens = known(byte_fallback_files(), added(content="a▁b"))
    assert least_tokens(text) == 200 // 2


def test_a_text_may_become_shorter() -> None:
    tokenizer, least_tokens = BOUNDED["bytes, NFC"]
    text = "\u1fbe\u0308\u0301" * 20
    assert (len(text.encode()), len(unicodedata.normalize("NFC", text).encode())) == (140, 40)
    assert len(tokenizer.encode(text).ids) == 1
    assert [least_tokens(text), least_tokens("x" * 140)] == [1, 4]


def test_an_added_token_may_stand_for_more_than_it_says() -> None:
    tokenizer, least_tokens = known(byte_fallback_files(), added(content="a" * 22))  # normalized: "▁aaa…"
    text = (" " + "a" * 22) * 50
    assert least_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False).ids) == 51


@pytest.mark.parametrize("tokens", [[], [b""]])
def test_a_vocabulary_of_nothing(tokens: list[bytes]) -> None:
    least_tokens = LeastTokens(tokens, str.encode, composes=False)
    assert (least_tokens(""), least_tokens("ab")) == (0, 2)


def test_long_texts_count_as_a_whole() -> None:
    _, least_tokens = BOUNDED["bytes"]
    assert least_tokens("Hello " * 10**6) > 6 * 10**6 // 14


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"].update(**WORD_PIECE),
        lambda content: content["model"].update(end_of_word_suffix="</w>"),
        lambda content: content.update(normalizer={"type": "NFKC"}),
        lambda content: content.update(normalizer={"type": "Replace", "pattern": {"String": "aa"}, "content": "a"}),
        lambda content: content.update(pre_tokenizer=None),
        lambda content: content.update(pre_tokenizer=sequence(SPLIT | {"behavior": "Removed"}, BYTE_LEVEL_STEP)),
        lambda content: content.update(pre_tokenizer=sequence({"type": "Whitespace"}, BYTE_LEVEL_STEP)),
        lambda content: content.update(pre_tokenizer=sequence(METASPACE, BYTE_LEVEL_STEP)),
        without_letters_but_with_nfc,
        added(content="<left>", lstrip=True),
        added(content="<right>", rstrip=True),
    ],
)
def test_nothing_is_sure_where_text_can_get_lost_before_a_byte_level_model(change: Change) -> None:
    assert changed(byte_level_files(), change)[1] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"].update(byte_fallback=False),
        lambda content: content["model"]["vocab"].pop("<0x0A>"),
        lambda content: content.update(pre_tokenizer=METASPACE | {"replacement": "_"}),
        lambda content: content["normalizer"]["normalizers"].append({"type": "Lowercase"}),
        lambda content: content["normalizer"]["normalizers"][1].update(content=""),
    ],
)
def test_nothing_is_sure_where_text_can_get_lost_before_byte_fallback(change: Change) -> None:
    assert changed(byte_fallback_files(), change)[1] is None


def test_nfc_makes_no_text_shorter_than_a_quarter_and_leaves_white_space() -> None:
    """Over all of Unicode: a character against the longest ways to write each of its parts."""
    characters = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    parts_of = {c: unicodedata.normalize("NFD", c) for c in characters if not unicodedata.is_normalized("NFD", c)}
    longest = {part: len(part.encode()) for parts in parts_of.values() for part in parts}
    for character, parts in parts_of.items():
        if len(parts) == 1:
            longest[parts] = max(longest[parts], len(character.encode()))
        else:  # not longer than its parts, so that looking at those is enough
            assert len(character.encode()) <= len(parts.encode())
    for character, parts in (parts_of | {part: part for part in longest}).items():
        whole = unicodedata.normalize("NFC", character)
        assert sum(longest[part] for part in parts) <= 4 * len(whole.encode())
    assert longest.keys().isdisjoint("\t\n\v\f\r ")
