import io
import re

from dynamo.llm.progress import MB, BarProgress, LineProgress, terminal_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_gets_a_bar_and_anything_else_lines() -> None:
    assert isinstance(terminal_progress(Terminal()), BarProgress)
    assert isinstance(terminal_progress(io.StringIO()), LineProgress)


def test_bar_grows_and_ends_its_line() -> None:
    terminal = Terminal()
    with BarProgress(terminal).measure("Copying", 10 * MB) as report:
        report(5 * MB)
        report(5 * MB + 1)  # the same percentage is not drawn again
    frames = terminal.getvalue().split("\r")[1:]
    assert [re.sub(r"\[.*\]", "", frame) for frame in frames] == [
        "Copying    0% of 10 MB",
        "Copying   50% of 10 MB",
        "Copying  100% of 10 MB\n",
    ]
    assert frames[1].count("#") == 15


def test_failed_work_is_not_called_done() -> None:
    log = io.StringIO()
    try:
        with LineProgress(log).measure("Copying", 10 * MB):
            raise OSError
    except OSError:
        pass
    assert log.getvalue() == "Copying (10 MB) ...\n"
