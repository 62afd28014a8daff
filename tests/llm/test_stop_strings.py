import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.llm.stop_strings import StopStrings

TEXTS = st.text("ab\n", max_size=20)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4).map(tuple)


def naive(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text up to the stop string that completes first: what the class is to do, character by character."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@settings(deadline=None)
@given(pieces=st.lists(TEXTS, max_size=6), stops=STOPS)
def test_against_the_naive_way(pieces: list[str], stops: tuple[str, ...]) -> None:
    watch = StopStrings(stops)
    expected, expected_stop = naive("".join(pieces), stops)
    out, stopped = "", False
    for piece in pieces:
        released, stopped = watch.push(piece)
        out += released
        assert expected.startswith(out), "something of a stop string leaked"
        if stopped:
            break
    if not stopped:
        out += watch.flush()
    assert (out, stopped) == (expected, expected_stop)


@settings(deadline=None)
@given(pieces=st.lists(TEXTS, max_size=6), stops=STOPS)
def test_no_more_is_held_back_than_could_be_a_stop_string(pieces: list[str], stops: tuple[str, ...]) -> None:
    watch, text, out = StopStrings(stops), "", ""
    for piece in pieces:
        released, stopped = watch.push(piece)
        if stopped:
            return
        text, out = text + piece, out + released
        held = text[len(out) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "outs"),
    [
        (["one", " END", " more"], ("END",), ["one", " "]),
        (["one E", "N", "D"], ("END",), ["one ", "", ""]),
        (["one E", "NT"], ("END",), ["one ", "ENT"]),
        (["aab"], ("ab",), ["a"]),
        (["aa", "ab"], ("ab",), ["a", "a"]),
        (["xabc"], ("abc", "b"), ["xa"]),  # "b" is complete one character earlier
        (["xab"], ("b", "ab"), ["x"]),  # both at once: nothing of either
    ],
)
def test_what_goes_out_when(pieces: list[str], stops: tuple[str, ...], outs: list[str]) -> None:
    watch = StopStrings(stops)
    results = []
    for piece in pieces:
        out, stopped = watch.push(piece)
        results.append(out)
        if stopped:
            break
    assert results == outs
