"""The reference of all flags."""

from pathlib import Path

from dynamo.cli.deployment import ServeConfig
from dynamo.cli.flags import reference
from dynamo.config import settings

PAGE = Path(__file__).parents[2] / "docs" / "flags.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == reference(), "renew it: python -m dynamo.cli.flags > docs/flags.md"


def test_every_flag_of_serve_is_there_once() -> None:
    lines = [line for line in reference().splitlines() if line.startswith("| ")]
    for setting in settings(ServeConfig):
        column, text = (1, setting.option.flags[0]) if setting.option.flags else (2, setting.option.env)
        assert sum(f"`{text}`" in line.split("|")[column].replace(",", "").split() for line in lines) >= 1, text


def test_no_column_is_broken() -> None:
    for line in reference().splitlines():
        if line.startswith("|"):
            assert line.count("|") == 5, line
