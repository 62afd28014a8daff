from dynamo.llm.tool_calls import ToolCallParts
from dynamo.protocols.openai.responses import CompletedFunction, CompletedToolCall, FunctionDelta, ToolCallDelta


def test_pieces_of_equal_index_belong_together() -> None:
    parts = ToolCallParts()
    parts.add([ToolCallDelta(index=1, id="b", function=FunctionDelta(name="g", arguments="{}"))])
    parts.add([ToolCallDelta(index=0, id="a", type="function", function=FunctionDelta(name="f", arguments='{"x":'))])
    parts.add([ToolCallDelta(index=0, id=None, function=FunctionDelta(arguments="1}")), ToolCallDelta(index=0)])
    assert parts.complete() == [
        CompletedToolCall(id="a", type="function", function=CompletedFunction(name="f", arguments='{"x":1}')),
        CompletedToolCall(id="b", type="function", function=CompletedFunction(name="g", arguments="{}")),
    ]


def test_no_pieces_are_no_calls() -> None:
    assert ToolCallParts().complete() == []
