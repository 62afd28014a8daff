from pathlib import Path

import msgspec
import pytest

from benchmarks.__main__ import DOCUMENT
from benchmarks.http_load import HttpSample
from benchmarks.points import HttpPoint, Pace
from benchmarks.prompt import Prompt
from benchmarks.report import BEGIN, END, doubts, problems, render, write
from benchmarks.suite import Results

POINT = HttpPoint(pace=Pace.PACED, concurrency=64)
PROMPT = Prompt(digits=12, words="", tokens=100)
SAMPLE = HttpSample(
    requests=100,
    tokens=6400,
    events=6240,
    errors={},
    elapsed_s=2.0,
    ttft_p50_ms=1.5,
    ttft_p99_ms=9.0,
    frontend_cpu_s=0.064,
    worker_cpu_s=0.032,
    client_cpu_s=0.016,
    frontend_pss_mib=70.0,
    frontend_descriptors=20,
    foreign_percent=3.0,
)


def test_a_row_shows_medians_and_the_busiest_moment() -> None:
    busy = msgspec.structs.replace(SAMPLE, frontend_cpu_s=0.64, foreign_percent=12.0)

    results = Results(http={POINT: [SAMPLE, busy, SAMPLE]})

    row = render(results, PROMPT, 3).splitlines()[-1]
    assert row == "| paced c=64 | 10.0 | 640 | 5.0 | 1.50 | 9.00 | 50 | 0.975 | 70 | 2.5 | 12 |"
    assert doubts(results) == ["paced c=64: other programs took 12 % of the machine"]
    assert problems(results) == []


def test_errors_are_problems() -> None:
    failed = msgspec.structs.replace(SAMPLE, errors={"status 503": 2})

    assert problems(Results(http={POINT: [failed]})) == ["paced c=64: 2 times: status 503"]


def test_only_what_is_between_the_marks_changes(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    write(document, "new")

    assert document.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"


def test_a_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("text")

    with pytest.raises(ValueError, match="lacks"):
        write(document, "new")

    assert document.read_text() == "text"


def test_our_document_has_the_marks() -> None:
    text = DOCUMENT.read_text()

    assert text.index(BEGIN) < text.index(END)
