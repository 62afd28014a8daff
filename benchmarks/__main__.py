"""`python -m benchmarks`: what scripts/bench runs."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.points import POINTS
from benchmarks.programs import ROOT, BenchmarkError
from benchmarks.prompt import Prompt, build_prompt
from benchmarks.soak import GROWTH_MAX_MIB, MORE_DESCRIPTORS_MAX, Size, growth_mib, more_descriptors, soak
from benchmarks.stack import OUTPUT_TOKENS
from benchmarks.suite import FULL, QUICK, run
from dynamo.errors import DynamoError
from dynamo.llm.model_source import resolve_model

DOCUMENT = ROOT / "docs" / "performance.md"
PROMPT_TOKENS = 100


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 when all requests were answered well and, in a soak, memory did not grow."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures this machine's figures for docs/performance.md, which explains them.",
    )
    parser.add_argument("--quick", action="store_true", help="once and shorter: 40 s instead of 4 minutes")
    parser.add_argument("--only", metavar="REGEX", help="only the rows whose name matches, such as 'paced|rpc'")
    parser.add_argument("--soak", metavar="N", type=int, help="instead: does the frontend's memory grow in N requests?")
    parser.add_argument(
        "--soak-tokens", metavar="N", type=int, default=OUTPUT_TOKENS, help="that each gets (default: %(default)s)"
    )
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT.relative_to(ROOT)}")
    options = parser.parse_args(argv)
    if options.write and (options.only or options.soak):
        parser.error("--write needs the whole table: not with --only or --soak")
    if min(options.soak or 1, options.soak_tokens) < 1 or options.soak == 0:
        parser.error("--soak needs at least one request, of one token")
    try:
        model_dir = resolve_model("smollm2", weights=False)
        prompt = build_prompt(model_dir, PROMPT_TOKENS)
        if options.soak:
            return _soak(options.soak, options.soak_tokens, model_dir, prompt)
        return _measure(options, model_dir, prompt)
    except (BenchmarkError, DynamoError) as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _measure(options: argparse.Namespace, model_dir: Path, prompt: Prompt) -> int:
    points = [point for point in POINTS if re.search(options.only or "", point.name)]
    if not points:
        raise BenchmarkError(f"no row's name matches {options.only!r}")
    effort = QUICK if options.quick else FULL
    results = run(points, effort, model_dir, prompt)
    text = report.render(results, prompt, effort.repetitions)
    print(text)
    for doubt in report.doubts(results):
        print(f"doubtful: {doubt}", file=sys.stderr)
    problems = report.problems(results)
    for problem in problems:
        print(f"wrong: {problem}", file=sys.stderr)
    if problems:
        return 1
    if options.write:
        report.write(DOCUMENT, text)
    return 0


def _soak(requests: int, output_tokens: int, model_dir: Path, prompt: Prompt) -> int:
    sizes: list[Size] = []
    for size in soak(requests, output_tokens, model_dir, prompt):
        print(f"{size.requests:>9,} requests: {size.pss_mib:.1f} MiB, {size.descriptors} descriptors", flush=True)
        sizes.append(size)
    growth, more = growth_mib(sizes), more_descriptors(sizes)
    print(
        f"growth since the first line: {growth:+.1f} MiB (at most {GROWTH_MAX_MIB:.1f}),"
        f" {more:+} descriptors (at most {MORE_DESCRIPTORS_MAX})"
    )
    return int(growth > GROWTH_MAX_MIB or more > MORE_DESCRIPTORS_MAX)


if __name__ == "__main__":
    sys.exit(main())
