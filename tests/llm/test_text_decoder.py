import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers

from dynamo.llm.text_decoder import CHARACTER_TOKENS_MAX, REPLACEMENT, TextDecoder, WindowDecoder
from dynamo.llm.tokenizer import Tokenizer
from dynamo.testing.tiny_model import byte_fallback_files, byte_level_files

BYTE_LEVEL = Tokenizer(byte_level_files())
BYTE_FALLBACK = Tokenizer(byte_fallback_files())


def windowed(files: dict[str, bytes]) -> Tokenizer:
    """The same tokenizer, not recognised as one whose tokens have fixed bytes."""
    content = json.loads(files["tokenizer.json"])
    content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"], {"type": "Fuse"}]}
    return Tokenizer(files | {"tokenizer.json": json.dumps(content).encode()})


WINDOWED = windowed(byte_level_files())

CHARACTERS = st.one_of(
    st.sampled_from("ab \n,é你\U0001f600"),
    st.integers(0x20, 0xD7FF).map(chr),
    st.integers(0xE000, 0x10FFFF).map(chr),
)
TEXTS = st.lists(CHARACTERS, max_size=30).map("".join)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer._encode([text], False)[0])


def cut(data: st.DataObject, ids: Sequence[int]) -> list[list[int]]:
    """The ids in random portions."""
    portions: list[list[int]] = []
    rest = list(ids)
    while rest:
        size = data.draw(st.integers(1, 4))
        portions.append(rest[:size])
        rest = rest[size:]
    return portions


def decoded(decoder: TextDecoder, portions: Sequence[Sequence[int]]) -> str:
    return "".join(decoder.push(portion) for portion in portions) + decoder.flush()


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK, WINDOWED], ids=["bytes", "fallback", "window"])
@settings(deadline=None)
@given(data=st.data(), text=TEXTS)
def test_any_text_comes_back_however_it_is_cut(tokenizer: Tokenizer, data: st.DataObject, text: str) -> None:
    ids = ids_of(tokenizer, text)
    assert decoded(tokenizer.decoder(), cut(data, ids)) == text == tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, WINDOWED], ids=["bytes", "window"])
@settings(deadline=None)
@given(data=st.data(), ids=st.lists(st.integers(0, BYTE_LEVEL.vocab_size + 5), max_size=30))
def test_any_tokens_decode_as_in_one_go(tokenizer: Tokenizer, data: st.DataObject, ids: list[int]) -> None:
    assert decoded(tokenizer.decoder(), cut(data, ids)) == tokenizer.decode(ids)


@settings(deadline=None)
@given(data=st.data(), ids=st.lists(st.integers(0, BYTE_FALLBACK.vocab_size + 5), max_size=30))
def test_any_tokens_of_a_fallback_vocabulary(data: st.DataObject, ids: list[int]) -> None:
    text = decoded(BYTE_FALLBACK.decoder(), cut(data, ids))
    whole = BYTE_FALLBACK.decode(ids)
    if REPLACEMENT not in whole:
        assert text == whole
    else:  # the library gives up a whole run of bytes where one is broken
        raw = b"".join(BYTE_FALLBACK.token_bytes(i) for i in ids if i not in (0, 1, 2))
        assert text == raw.decode(errors="replace").removeprefix(" ")


@settings(deadline=None)
@given(text=TEXTS)
def test_no_piece_ever_holds_half_a_character(text: str) -> None:
    decoder = BYTE_LEVEL.decoder()
    pieces = [decoder.push([token_id]) for token_id in ids_of(BYTE_LEVEL, text)]
    assert "".join(pieces) == text


def test_what_is_cut_off_at_the_end_is_not_lost() -> None:
    ids = ids_of(BYTE_LEVEL, "é你")[:-1]
    assert decoded(BYTE_LEVEL.decoder(), [ids]) == "é" + REPLACEMENT == BYTE_LEVEL.decode(ids)


def test_special_tokens_inside_a_character_do_not_break_it() -> None:
    first, second = ids_of(BYTE_LEVEL, "é")
    assert decoded(BYTE_LEVEL.decoder(), [[first], [0], [second]]) == "é"


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["bytes", "fallback"])
@pytest.mark.parametrize("unknown", [10**6, 2**40, -1])
def test_ids_that_do_not_exist_are_nothing(tokenizer: Tokenizer, unknown: int) -> None:
    first, second = ids_of(tokenizer, "é")[-2:]
    decoder = tokenizer.decoder(continues=True)
    portions = [[unknown], [first], [unknown], [second], [unknown, first], [second, unknown]]
    assert decoded(decoder, portions) == "éé"


def test_the_first_space_belongs_to_a_text_that_goes_on() -> None:
    ids = ids_of(BYTE_FALLBACK, "The end")
    assert decoded(BYTE_FALLBACK.decoder(), [[i] for i in ids]) == "The end"
    assert decoded(BYTE_FALLBACK.decoder(continues=True), [[i] for i in ids]) == " The end"


def test_special_tokens_can_be_shown() -> None:
    decoder = BYTE_LEVEL.decoder(special_tokens=True)
    assert decoded(decoder, [[2]]) == "<|im_end|>"


def test_a_window_stays_small() -> None:
    """Broken characters and special tokens without end cost no more and more time."""
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return WINDOWED.decode(ids)

    broken = ids_of(WINDOWED, "é")[1]
    for endless in (broken, 0):
        decoder = WindowDecoder(decode)
        text = decoded(decoder, [[endless]] * 1000)
        assert text == WINDOWED.decode([endless] * 1000)
    assert longest <= 2 * CHARACTER_TOKENS_MAX


def test_a_tokenizer_that_joins_words_by_spaces() -> None:
    raw = RawTokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "world": 2}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.WordPiece()
    tokenizer = Tokenizer({"tokenizer.json": raw.to_str().encode()})
    assert decoded(tokenizer.decoder(), [[1], [2], [1]]) == "hello world hello"
