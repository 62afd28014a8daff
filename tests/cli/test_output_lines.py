"""What programs print, cut into lines: whole ones and progress bars, however the bytes arrive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.cli.output_lines import LINE_CHARS_MAX, OutputLines

Seen = list[tuple[str, bool]]


def fed(*pieces: bytes) -> Seen:
    lines = OutputLines()
    seen = [line for piece in pieces for line in lines.feed(piece)]
    return seen + lines.end()


@pytest.mark.parametrize(
    ("pieces", "seen"),
    [
        ([b"one\ntwo\n"], [("one", True), ("two", True)]),
        ([b"o", b"ne\nt", b"wo"], [("one", True), ("two", True)]),
        ([b"one\r\ntwo\r", b"\n"], [("one", True), ("two", False), ("two", True)]),
        ([b"\r10%", b"\r20%", b"\r30%\n"], [("10%", False), ("20%", False), ("30%", True)]),
        ([b"10%\r", b"20%\r", b"done\n"], [("10%", False), ("20%", False), ("done", True)]),
        ([b"10%\r20%\r30%\r"], [("30%", False), ("30%", True)]),
        ([b"bar \xe2\x96", b"\x88\n"], [("bar █", True)]),
        ([b"\xff\n"], [("\ufffd", True)]),
        ([b""], []),
        ([b"\n"], [("", True)]),
    ],
)
def test_lines(pieces: list[bytes], seen: Seen) -> None:
    assert fed(*pieces) == seen


def test_endless_line_does_not_pile_up() -> None:
    lines = OutputLines()
    for _ in range(100):
        assert lines.feed(b"x" * 10_000) == []
    ((text, complete),) = lines.feed(b"\n")
    assert complete
    assert len(text) == LINE_CHARS_MAX


@given(st.lists(st.text(st.characters(blacklist_characters="\r\n", codec="utf-8"))), st.data())
def test_whole_lines_are_the_same_however_they_are_cut(texts: list[str], data: st.DataObject) -> None:
    stream = "".join(f"{text}\n" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert fed(*pieces) == [(text, True) for text in texts]
