"""An import never goes up a floor, modules keep out of each other's private names, no cycles."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from torch import nn
from transformers import Trainer

import hf_distill

PACKAGE = Path(hf_distill.__file__).parent

FLOORS = (
    ("cli", "demo", "__main__"),
    ("exporting", "shrinking"),
    ("sweeping", "reports", "recipes"),
    ("scoring", "seq2seq", "trainer", "sharding"),
    ("hub", "checkpoints"),
    ("distiller", "checks", "labels"),
    ("augmentation", "labelling"),
    ("tasks",),
    ("teachers",),
    ("students",),
    ("compatibility",),
    ("layers",),
    ("alignment",),
    ("heads",),
    ("training_args",),
    ("losses", "step", "schedules"),
    ("loading", "onnx_model", "least_squares"),
    ("files", "launch", "extras", "console", "plotting", "markdown", "restoring", "_version"),
)
"""Rooms from top to bottom. Those of one floor may import each other, but not in a circle."""

LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.AST) -> set[str]:
    """Modules of the package that are imported anywhere in the tree, types only included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one for one in members if one in modules()} or {node.module}
    return {name for name in found if name.split(".")[0] == "hf_distill" and name != "hf_distill"}


def at_import_time(tree: ast.Module) -> set[str]:
    """What is imported when the module is: nothing in functions or under ``TYPE_CHECKING``."""
    nodes: list[ast.stmt] = []
    for node in tree.body:
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not typing_only and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            nodes.append(node)
    return imported(ast.Module(nodes, []))


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_floor() -> None:
    rooms = {room(name) for name in modules() if name != "hf_distill"}
    assert rooms == set(LEVEL)


@pytest.mark.parametrize("module", [name for name in modules() if name != "hf_distill"])
def test_an_import_never_goes_up(module: str) -> None:
    upward = {
        other for other in imported(modules()[module]) if LEVEL[room(other)] < LEVEL[room(module)]
    }
    assert upward == set()


def test_no_room_is_imported_in_a_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for module, tree in modules().items():
        if module != "hf_distill":
            others = {room(other) for other in imported(tree)} - {room(module)}
            rooms.setdefault(room(module), set()).update(others)
    assert circle(rooms) == []


def test_no_module_is_imported_in_a_circle() -> None:
    graph = {module: at_import_time(tree) for module, tree in modules().items()}
    # `from package import name` in a part of that package is no circle if the package's own
    # __init__ is what is left out: the part is then imported on the way.
    for module in graph:
        graph[module] = {other for other in graph[module] if not module.startswith(f"{other}.")}
    assert circle(graph) == []


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of a graph, as the names on the way round; empty without one."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    for start in graph:
        if found := visit(start, []):
            return found
    return []


@pytest.mark.parametrize("module", modules())
def test_private_names_stay_at_home(module: str) -> None:
    tree = modules()[module]
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    defined = private_names_of_the_package() - own
    taken = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in defined
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_distill"):
            taken |= {a.name for a in node.names if a.name.startswith("_") and a.name != "_version"}
    assert taken - {"__version__"} == set()


@cache
def private_names_of_the_package() -> set[str]:
    names: set[str] = set()
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    of_libraries = {*dir(nn.Module()), *dir(Trainer)}
    own = names - of_libraries
    return {name for name in own if name.startswith("_") and not name.startswith("__")}


def test_the_checks_see_a_fault() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    tree = ast.parse("def f():\n    from hf_distill.cli import main\n")
    assert imported(tree) == {"hf_distill.cli.main"}
    assert at_import_time(tree) == set()
