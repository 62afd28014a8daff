"""What a package exports is what its `__all__` says, no more and no less."""

import importlib
import pkgutil
import types

import pytest

import dynamo

PACKAGES = [
    "dynamo",
    *(module.name for module in pkgutil.walk_packages(dynamo.__path__, "dynamo.") if module.ispkg),
]


@pytest.mark.parametrize("name", PACKAGES)
def test_exports(name: str) -> None:
    package = importlib.import_module(name)
    exported = [
        key
        for key, value in vars(package).items()
        if not key.startswith("_") and not isinstance(value, types.ModuleType)
    ]
    assert getattr(package, "__all__", []) == sorted(exported)
