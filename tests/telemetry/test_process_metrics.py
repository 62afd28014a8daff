import asyncio

from prometheus_client import CollectorRegistry, generate_latest

from dynamo.telemetry.process_metrics import ProcessMetrics


def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    ProcessMetrics(made)
    return made


async def test_tasks_are_counted() -> None:
    asked = registry()
    before = asked.get_sample_value("dynamo_event_loop_tasks")
    assert before is not None
    task = asyncio.create_task(asyncio.Event().wait())
    assert asked.get_sample_value("dynamo_event_loop_tasks") == before + 1
    task.cancel()
    await asyncio.wait([task])
    assert asked.get_sample_value("dynamo_event_loop_tasks") == before


def test_without_an_event_loop() -> None:
    text = generate_latest(registry()).decode()
    assert "process_open_fds" in text
    assert "dynamo_event_loop_tasks" not in text
