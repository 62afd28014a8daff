from pathlib import Path

import pytest

from dynamo.cli.main import main

SLICE = Path(__file__).parents[1] / "data" / "mooncake_conversation_slice.jsonl"


def test_compares_routers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(SLICE), "--router-mode", "kv,random", "--workers", "2", "--limit", "20"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("20 requests, ")
    assert [line.split()[1] for line in out.splitlines() if line.startswith("| ")] == ["router", "kv", "random"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([str(SLICE), "--workers", "0"], "--workers"),
        ([str(SLICE), "--num-gpu-blocks-override", "3"], "do not fit"),
        (["/nowhere/trace.jsonl"], "/nowhere/trace.jsonl"),
    ],
)
def test_says_what_is_wrong(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *flags]) == 1
    _, err = capsys.readouterr()
    assert err.startswith("dynamo simulate: ")
    assert message in err
