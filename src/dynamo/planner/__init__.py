"""The planner: as many workers as the traffic needs. What decides is pure; `python -m dynamo.planner` runs it."""
