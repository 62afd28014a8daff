"""Nothing in the framework turns data into code: what travels is JSON, msgpack and plain bytes."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import dynamo

SOURCES = sorted(Path(dynamo.__file__ or "").parent.rglob("*.py"))
MODULES = (
    "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "multiprocessing.connection", "multiprocessing.managers",
    "pickle", "shelve", "yaml",
)  # fmt: skip
BUILTINS = {"__import__", "compile", "eval", "exec"}
LOADERS = {("np", "load"), ("numpy", "load"), ("torch", "load")}  # all three unpickle, if they may


def findings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if is_within(name.name, MODULES))
            case ast.ImportFrom(module=str(module)) if is_within(module, MODULES):
                yield module
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attribute)) if (name, attribute) in LOADERS:
                yield f"{name}.{attribute}"


def is_within(name: str, modules: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def test_all_sources_are_looked_at() -> None:
    assert {"errors.py", "codec.py", "api_keys.py"} <= {path.name for path in SOURCES}


def test_no_code_in_data() -> None:
    assert {path: found for path in SOURCES if (found := list(findings(path.read_text())))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, pickle as p",
        "from pickle import loads",
        "from multiprocessing.connection import Client",
        "import yaml",
        "def f(x):\n    return eval(x)",
        "exec('1')",
        "torch.load(path)",
        "with x: np.load(f, allow_pickle=True)",
    ],
)
def test_it_would_be_found(source: str) -> None:
    assert len(list(findings(source))) == 1


@pytest.mark.parametrize("source", ["import re\nre.compile('a')", "model.eval()", "from picklebarrel import x"])
def test_what_is_no_such_thing(source: str) -> None:
    assert list(findings(source)) == []
