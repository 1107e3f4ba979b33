"""The public surface: names, docstrings, what `import zmesh` loads."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import zmesh

PUBLIC_MODULES = [
    "zmesh",
    "zmesh.balance",
    "zmesh.config",
    "zmesh.context",
    "zmesh.errors",
    "zmesh.explanation",
    "zmesh.sync",
    "zmesh.testing",
]
LAZY = ["Mesh", "connect"]  # loaded when they are used


def public(module: ModuleType) -> list[str]:
    """What `from module import *` would give without an `__all__`, less the modules in it."""
    return [name for name, value in vars(module).items() if name[0] != "_" and not isinstance(value, ModuleType)]


def test_all_is_what_can_be_imported() -> None:
    assert sorted(zmesh.__all__) == sorted([*public(zmesh), *LAZY, "__version__"])
    with pytest.raises(AttributeError, match="module 'zmesh' has no attribute 'conect'"):
        zmesh.conect  # type: ignore[attr-defined]  # noqa: B018


def test_all_is_sorted() -> None:
    assert zmesh.__all__ == sorted(zmesh.__all__)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_every_name_of_a_public_module_exists(name: str) -> None:
    module = importlib.import_module(name)
    assert [each for each in module.__all__ if not hasattr(module, each)] == []
    assert len(set(module.__all__)) == len(module.__all__)


def test_the_names_of_the_tour_are_there() -> None:
    names = "Service rpc Node connect context RpcError Unavailable DeadlineExceeded NotFound MaybeExecuted Call Config"
    assert {*names.split(), "Code", "Mesh"} <= set(zmesh.__all__)
    assert issubclass(zmesh.MaybeExecuted, zmesh.Unknown)
    assert not issubclass(zmesh.MaybeExecuted, zmesh.Unavailable)


def test_each_status_code_has_its_class() -> None:
    classes = {
        value.code
        for value in vars(zmesh).values()
        if isinstance(value, type) and issubclass(value, zmesh.RpcError) and value is not zmesh.RpcError
    }
    assert classes == set(zmesh.Code) - {zmesh.Code.OK}


def documented() -> Iterator[tuple[str, object]]:
    """Public classes and functions, and the public methods and properties of those classes."""
    seen: set[int] = set()
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if not (inspect.isclass(value) or inspect.isroutine(value)) or id(value) in seen:
                continue
            seen.add(id(value))
            yield f"{module_name}.{name}", value
            if inspect.isclass(value):
                for attribute, member in vars(value).items():
                    if attribute[0] != "_" and (inspect.isroutine(member) or isinstance(member, property)):
                        yield f"{module_name}.{name}.{attribute}", getattr(value, attribute)


@pytest.mark.parametrize(
    ("name", "value"), list(documented()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_public_thing_has_a_docstring(name: str, value: object) -> None:
    assert inspect.getdoc(value), f"{name} has no docstring"


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+|\.dev\d+)?", zmesh.__version__)


def test_types_are_shipped() -> None:
    assert (Path(zmesh.__file__).parent / "py.typed").exists()


def test_import_loads_nothing_slow() -> None:
    code = "import json, sys; import zmesh; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    assert "zmesh.node" in loaded
    slow = {"zeroconf", "rich", "click", "numpy", "ifaddr", "uvloop", "zmesh.sync", "zmesh.testing", "zmesh.cli"}
    assert loaded & slow == set()
