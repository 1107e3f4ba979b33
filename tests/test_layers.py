"""Imports go downwards, as the table of rooms in docs/architecture.md says; libraries come in by their one door."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "zmesh"
PAGE = ROOT / "docs" / "architecture.md"

# Library: the rooms that may import it.
DOORS = {
    "zmq": ("_transport", "cli/_bare"),
    "zeroconf": ("discovery",),
    "ifaddr": ("discovery",),
    "cbor2": ("_core/wire", "cli/_bare"),
    "msgspec": ("_values", "schema"),
    "numpy": ("_core/wire",),
    "click": ("cli",),
    "rich": ("cli", "_map"),
    "uvloop": ("cli", "sync"),
}
# What does IO, waits or tells the time: none of the rules' business.
OUTSIDE = {"asyncio", "concurrent", "multiprocessing", "os", "selectors", "signal", "socket", "ssl", "subprocess",
           "threading", "time"}  # fmt: skip


def rooms() -> dict[str, int]:
    """Room to layer, in the order of the table."""
    table = PAGE.read_text(encoding="utf-8").partition("<!-- rooms -->")[2].partition("<!-- end -->")[0]
    return {room: int(layer) for layer, room in re.findall(r"^\| (\d) \| `(\S+)` \|", table, re.MULTILINE)}


ROOMS = rooms()


def module_of(path: Path) -> str:
    """`zmesh._core.wire`; a package by its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str | None:
    """The room that a module is in: its own, else that of the folder around it; None where the table has none."""
    inner = module.removeprefix("zmesh").removeprefix(".").replace(".", "/")
    if inner == "":
        return "zmesh"
    while inner not in ROOMS:
        inner, slash, _ = inner.rpartition("/")
        if not slash:
            return None
    return inner


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Everything in a module, also inside functions, but not what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield other
                yield from statements(other)
            continue
        yield child
        yield from statements(child)


def imports(module: str) -> set[str]:
    """The modules of zmesh, and the top-level names of others, that a module imports anywhere."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = [
                f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source for alias in node.names
            ]
        else:
            continue
        found.update(name if name.split(".")[0] == "zmesh" else name.split(".")[0] for name in names)
    return found


def test_the_table_has_each_room_once_and_layers_in_order() -> None:
    assert len(ROOMS) > 30
    layers = list(ROOMS.values())
    assert layers == sorted(layers)
    for room in ROOMS:
        where = PACKAGE if room == "zmesh" else PACKAGE / room
        assert where.with_suffix(".py").exists() or (where / "__init__.py").exists(), f"{room} is in the table only"


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_downwards(module: str) -> None:
    room = room_of(module)
    assert room is not None, f"{module} is in no room of {PAGE.name}"
    order = list(ROOMS)
    for imported in imports(module):
        if not imported.startswith("zmesh"):
            continue
        other = room_of(imported)
        assert other is not None, f"{module} imports {imported}, which is in no room"
        assert other == room or order.index(other) < order.index(room), f"{module} imports {imported}: that is upwards"


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_libraries_by_their_door(module: str) -> None:
    room = room_of(module)
    assert room is not None
    for imported in imports(module):
        if imported.startswith("zmesh") or imported in sys.stdlib_module_names:
            continue
        assert imported in DOORS, f"{module} imports {imported}, which has no door yet"
        assert room.split("/")[0] in DOORS[imported] or room in DOORS[imported], f"{module} imports {imported}"


def test_library_has_exactly_one_importer() -> None:
    importers = [module for module in MODULES if "cbor2" in imports(module)]
    assert [room_of(module) for module in importers] == list(DOORS["cbor2"])


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("zmesh._core")])
def test_core_does_no_io(module: str) -> None:
    assert not imports(module) & OUTSIDE


def test_the_reader_of_imports_sees_what_it_should() -> None:
    # The tests above pass in vain where it sees nothing.
    assert "zmesh._core.messages" in imports("zmesh._core.wire")
    assert {"zmq", "asyncio", "zmesh._transport", "zmesh.config"} <= imports("zmesh._transport.zeromq")
    assert "zmesh._transport.zeromq" in imports("zmesh._platform"), "an import inside a function"
    assert "zmesh._server" not in imports("zmesh.context"), "an import for annotations only"
