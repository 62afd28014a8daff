"""The table of the router's kernels."""

from benchmarks.kernel import Row, render


def test_table() -> None:
    native = [Row("hash", 0.000_0635), Row("events", 0.05, 1_000_000)]
    python = [Row("hash", 0.0033), Row("events", 0.5, 1_000_000)]
    assert render({"native": native, "python": python}).splitlines() == [
        "| | native | python |",
        "|---|---|---|",
        "| hash | 63.5 µs | 3,300.0 µs |",
        "| events | 20.0 M blocks/s | 2.0 M blocks/s |",
    ]
