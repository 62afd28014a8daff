"""`dynamo planner`, with a planner's endpoints and without."""

import asyncio
import contextlib
import itertools
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from dynamo.cli.main import main
from dynamo.cli.planner_report import report_lines
from dynamo.planner.connectors.virtual import VirtualConnector
from dynamo.planner.decision import Convert, Decision, Forecast, RoleDecision, Scale
from dynamo.planner.decisions import Decisions, PlannerReport, PlannerSettings
from dynamo.planner.scaling import ScalingRequest, ScalingTarget
from dynamo.planner.workers import Workers
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.testing.program import program

PLANNER = ["-m", "dynamo.cli.main", "planner"]
END_S = 30.0
SETTINGS = PlannerSettings(
    connector="virtual", mode="both", predictor="kalman", advisory=False, ttft_ms=500, itl_ms=50, interval_s=5
)
PREFILL, DECODE = WorkerType.Prefill, WorkerType.Decode
DECISION = Decision(
    number=7,
    at_s=100.0,
    observed=Forecast(requests_per_s=12.34, prompt_tokens=512, output_tokens=100),
    forecast=Forecast(requests_per_s=15.0, prompt_tokens=500, output_tokens=101),
    ttft_s=0.1234,
    itl_s=0.0156,
    roles=(
        RoleDecision(role=PREFILL, ready=2, current=2, throughput=1, load=2, wanted=2, target=2),
        RoleDecision(
            role=DECODE, ready=3, current=4, load=5, wanted=5, target=4, reasons=("load: 90% of KV blocks", "budget: 6")
        ),
    ),
    problems=("1 of 3 decode workers do not say their load: ab",),
    actions=(Scale(role=DECODE, workers=4),),
)


def shown(decision: Decision, *, advisory: bool = False) -> list[str]:
    settings = msgspec.structs.replace(SETTINGS, advisory=advisory)
    return list(report_lines(PlannerReport(decision=decision, age_s=1.234, settings=settings)))


def test_a_decision_for_people() -> None:
    assert shown(DECISION) == [
        "decision 7, 1.2 s ago: scale decode to 4",
        "  virtual connector, mode both, every 5 s",
        "",
        "              requests/s    prompt    output    TTFT ms     ITL ms",
        "  observed         12.34       512       100      123.4       15.6",
        "  forecast         15.00       500       101",
        "  aim                                               500         50",
        "",
        "  role              ready    current throughput       load     wanted     target",
        "  prefill               2          2          1          2          2          2",
        "  decode                3          4          -          5          5          4",
        "  decode: load: 90% of KV blocks",
        "  decode: budget: 6",
        "  ! 1 of 3 decode workers do not say their load: ab",
    ]


@pytest.mark.parametrize(
    ("decision", "advisory", "first"),
    [
        (Decision(number=1, at_s=0.0), False, "decision 1, 1.2 s ago: no change"),
        (Decision(number=1, at_s=0.0, held="no figures"), True, "decision 1, 1.2 s ago: held, no figures"),
        (DECISION, True, "decision 7, 1.2 s ago: would scale decode to 4"),
        (
            Decision(number=1, at_s=0.0, actions=(Convert(source=PREFILL, destination=DECODE, workers=2),)),
            False,
            "decision 1, 1.2 s ago: turn 2 prefill into decode",
        ),
    ],
)
def test_what_comes_of_it(decision: Decision, advisory: bool, first: str) -> None:
    assert shown(decision, advisory=advisory)[0] == first


@pytest.fixture
async def runtime(discovery: Path) -> AsyncIterator[DistributedRuntime]:
    """Where the planner's endpoints are."""
    made = DistributedRuntime(config=RuntimeConfig(file_kv=str(discovery)))
    yield made
    await made.close()


async def test_status(runtime: DistributedRuntime, environ: dict[str, str]) -> None:
    decisions = Decisions(SETTINGS)
    await decisions.serve(runtime.endpoint("dynamo.planner.decisions"))
    async with program([*PLANNER, "status"], environ) as early:
        assert await early.exit_code(END_S) == 1
    assert "has not decided anything yet" in early.output
    decisions.add(msgspec.structs.replace(DECISION, number=6))
    decisions.add(DECISION)
    async with program([*PLANNER, "status", "--last", "2", "--json"], environ) as asked:
        assert await asked.exit_code(END_S) == 0
    reports = [msgspec.json.decode(line, type=PlannerReport) for line in asked.output.splitlines()]
    assert [report.decision.number for report in reports] == [6, 7]
    assert reports[1].decision == DECISION
    async with program([*PLANNER, "status", "--follow"], environ) as following:
        await following.line("decision 7", END_S)
        decisions.add(msgspec.structs.replace(DECISION, number=8))
        await following.line("decision 8", END_S)


async def test_whoever_has_read_enough_sees_no_traceback(
    runtime: DistributedRuntime, environ: dict[str, str], tmp_path: Path
) -> None:
    decisions = Decisions(SETTINGS)
    await decisions.serve(runtime.endpoint("dynamo.planner.decisions"))
    said = tmp_path / "said"
    command = shlex.join([sys.executable, *PLANNER, "status", "--follow", "--json"])
    reading = await asyncio.create_subprocess_shell(
        f"{command} 2> {said} | head -n 1 > /dev/null", env=os.environ | environ
    )
    numbers = itertools.count(1)
    async with asyncio.timeout(END_S):
        while reading.returncode is None:
            decisions.add(Decision(number=next(numbers), at_s=0.0))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reading.wait(), 0.05)
    assert said.read_text() == ""


async def test_target_and_acknowledgement(runtime: DistributedRuntime, environ: dict[str, str]) -> None:
    told: list[ScalingRequest] = []

    async def scaling(request: ScalingRequest) -> AsyncIterator[ScalingTarget]:
        told.append(request)
        yield ScalingTarget(id=3, workers={PREFILL: 1, DECODE: 2}, acknowledged=False, age_s=4.2)

    await runtime.endpoint("dynamo.planner.scaling").start(scaling, request_type=ScalingRequest)
    async with program([*PLANNER, "target"], environ) as target:
        assert await target.exit_code(END_S) == 0
    assert target.output == "target 3: prefill=1 decode=2  (not acknowledged, 4 s old)"
    async with program([*PLANNER, "acknowledge", "3", "decode=1"], environ) as acknowledged:
        assert await acknowledged.exit_code(END_S) == 0
    assert told == [ScalingRequest(), ScalingRequest(acknowledge=3, workers={DECODE: 1})]


@pytest.mark.parametrize(
    ("action", "what", "flags"),
    [("status", "no planner runs", ""), ("target", "--connector virtual runs", " --connector virtual")],
)
def test_no_planner(discovery: Path, capsys: pytest.CaptureFixture[str], action: str, what: str, flags: str) -> None:
    assert main(["planner", "--file-kv", str(discovery), action]) == 1
    said = capsys.readouterr().err
    assert what in said
    assert f"`python -m dynamo.planner{flags}`" in said


async def test_a_planner_elsewhere(runtime: DistributedRuntime, environ: dict[str, str]) -> None:
    await Decisions(SETTINGS).serve(runtime.endpoint("serve-8000.planner.decisions"))
    async with program([*PLANNER, "status"], environ) as status:
        assert await status.exit_code(END_S) == 1
    assert "namespace 'dynamo'; there are some with --namespace serve-8000" in status.output


async def test_several_planners(runtime: DistributedRuntime, environ: dict[str, str]) -> None:
    for planner in (runtime, runtime.sibling()):
        decisions = Decisions(SETTINGS)
        decisions.add(DECISION)
        await decisions.serve(planner.endpoint("dynamo.planner.decisions"))
        await VirtualConnector(Workers(planner.discovery, "dynamo"), 1.0).serve(
            planner.endpoint("dynamo.planner.scaling")
        )
    async with program([*PLANNER, "status"], environ) as status:
        assert await status.exit_code(END_S) == 0
    assert "2 planners run in namespace 'dynamo'; this is one of them" in status.output
    async with program([*PLANNER, "acknowledge", "0"], environ) as acknowledged:
        assert await acknowledged.exit_code(END_S) == 1
    assert "give each one of its own" in acknowledged.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "the following arguments are required: action"),
        (["stop"], "invalid choice"),
        (["status", "3"], "status takes no '3'"),
        (["status", "--last", "0"], "--last must be from 1 to 256"),
        (["status", "--last", "9" * 30], "--last must be from 1 to 256"),
        (["acknowledge"], "acknowledge needs the target's ID"),
        (["acknowledge", "x"], "acknowledge needs the target's ID"),
        (["acknowledge", "9" * 30], "acknowledge needs the target's ID"),
        (["acknowledge", "1", f"decode={'9' * 30}"], "workers are written ROLE=N"),
        (["acknowledge", "1", "decode"], "workers are written ROLE=N"),
        (["acknowledge", "1", "encode=1"], "with aggregated, prefill, decode as ROLE, not 'encode=1'"),
        (["status", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    ],
)
def test_wrong_command_line(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["planner", *arguments])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
