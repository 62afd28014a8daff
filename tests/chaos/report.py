"""What has come of a run."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .faults import Kind

SHOWN_MAX = 20  # of what went wrong


@dataclass(slots=True, kw_only=True)
class Report:
    """Filled in while the run goes on."""

    seed: int
    seconds: float
    faults: Counter[Kind] = field(default_factory=Counter)
    passed_over: int = 0  # faults for which nobody was left who could stand them
    answered: int = 0  # as undisturbed
    asked_again: int = 0  # because the client's frontend was ended in the middle
    tokens: int = 0
    lost: list[str] = field(default_factory=list)  # requests that ended otherwise
    wrong: list[str] = field(default_factory=list)  # answers that are not those of an undisturbed run
    left: list[str] = field(default_factory=list)  # what was still there after the end, and other complaints
    first_token_s: float = 0.0  # the longest time until anything came
    silence_s: float = 0.0  # the longest time in the middle

    @property
    def clean(self) -> bool:
        return not (self.lost or self.wrong or self.left)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}, {self.seconds:.0f} s: {self.faults.total()} faults, {self.passed_over} passed over"
        ]
        lines += [f"  {number:4} {kind}" for kind, number in sorted(self.faults.items())]
        lines.append(
            f"{self.answered} requests answered as undisturbed, {self.tokens} tokens; {self.asked_again} asked again"
            " because their frontend had ended"
        )
        lines.append(
            f"longest wait for a first token {self.first_token_s:.1f} s, between tokens {self.silence_s:.1f} s"
        )
        for what, texts in (("lost", self.lost), ("wrong", self.wrong), ("left", self.left)):
            lines.append(f"{what}: {len(texts) or 'nothing'}")
            lines += [f"  {text}" for text in texts[:SHOWN_MAX]]
        return "\n".join(lines)


def table(reports: Iterable[Report]) -> str:
    """In markdown: of reports about one kind of fault each, what it costs."""
    lines = [
        "| fault | times | answered as undisturbed | asked again | lost | longest TTFT | longest silence later |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for report in reports:
        (kind, times), *_ = report.faults.items()
        lost = len(report.lost) + len(report.wrong)
        lines.append(
            f"| {kind} | {times} | {report.answered} | {report.asked_again} | {lost} | {report.first_token_s:.1f} s"
            f" | {report.silence_s:.1f} s |"
        )
    return "\n".join(lines)
