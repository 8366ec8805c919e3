"""The options of a training as its dataclasses spell them in their source, without PyTorch.

``TrainingArguments`` takes PyTorch to import, which is seconds. Their names, help texts and choices
can be read from the source at once, which is enough for ``--help`` and for a mistyped name.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib.util
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

_MODULES = {"transformers": "transformers.training_args"}
_FUNCTIONS: dict[str, Any] = {"list": list, "sorted": sorted, "tuple": tuple, "dict": dict}


def outline(*classes: str, only: Collection[str] | None = None) -> type:
    """Make a dataclass with the fields of others, from their source.

    A default or a choice that is not written out there is left out, and such a type is text.

    Args:
        *classes: ``module:name``, base classes first.
        only: the names of the fields; all by default.

    Raises:
        OSError: the source is not installed.
    """
    made: dict[str, tuple[str, Any, Any]] = {}
    for name in classes:
        module, _, class_name = name.partition(":")
        for statement in _statement(module, class_name).body:
            if not isinstance(statement, ast.AnnAssign):
                continue
            target = statement.target
            if isinstance(target, ast.Name) and (only is None or target.id in only):
                made[target.id] = _field(module, statement)
    return dataclasses.make_dataclass(classes[-1].partition(":")[2], made.values())


def _field(module: str, statement: ast.AnnAssign) -> tuple[str, Any, Any]:
    assert isinstance(statement.target, ast.Name)
    call = statement.value
    options = {}
    if isinstance(call, ast.Call):
        options = {one.arg: one.value for one in call.keywords}
    metadata: dict[str, Any] = {}
    for key, value in zip(*_items(options.get("metadata")), strict=True):
        found = _value(module, value)
        # `choices` as the parser names those that it does not list.
        metadata |= {"metavar": "NAME"} if found is None and key == "choices" else {key: found}
    has_list = isinstance(options.get("default_factory"), ast.Name)
    default = dataclasses.field(
        **(
            {"default_factory": list}
            if has_list
            else {"default": _value(module, options.get("default"))}
        ),
        metadata=metadata,
    )
    try:
        kind = eval(ast.unparse(statement.annotation), {}, _Types(module))
    except (TypeError, AttributeError, NameError):
        kind = str | None
    return statement.target.id, kind, default


def _items(node: ast.expr | None) -> tuple[list[Any], list[ast.expr]]:
    if not isinstance(node, ast.Dict):
        return [], []
    return [ast.literal_eval(key) for key in node.keys if key is not None], node.values


class _Types(dict[str, Any]):
    """The names in annotations: built-in types, and enumerations by their values."""

    def __init__(self, module: str) -> None:
        super().__init__(Any=Any)
        self._module = module

    def __missing__(self, name: str) -> Any:
        try:
            statement = _statement(self._module, name)
        except LookupError:
            raise KeyError(name) from None
        if not isinstance(statement, ast.ClassDef):
            raise KeyError(name)
        values = {
            one.targets[0].id: ast.literal_eval(one.value)
            for one in statement.body
            if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
        }
        return enum.Enum(name, values)


def _value(module: str, node: ast.expr | None) -> Any:
    """Return an expression's value; ``None`` if it is not written out."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1:
        argument = _value(module, node.args[0])
        known = node.func.id in _FUNCTIONS and argument is not None
        return _FUNCTIONS[node.func.id](argument) if known else None
    if isinstance(node, ast.Name):
        try:
            return _value(module, getattr(_statement(module, node.id), "value", None))
        except LookupError:
            return None
    if isinstance(node, ast.Dict) and module.startswith("hf_distill"):
        return _items(node)[0]  # a registry: its keys
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _statement(module: str, name: str) -> Any:
    """Return the statement that defines a name of a module, there or where it is imported from.

    Raises:
        LookupError: nothing does.
    """
    for statement in _source(module):
        if isinstance(statement, ast.ImportFrom):
            if any((alias.asname or alias.name) == name for alias in statement.names):
                parent = module.rpartition(".")[0] if statement.level else ""
                target = f"{parent}.{statement.module}".strip(".")
                return _statement(_MODULES.get(target, target), name)
        elif name in _defined(statement):
            return statement
    raise LookupError(name)


def _defined(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.ClassDef):
        yield statement.name
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    yield from (one.id for one in targets if isinstance(one, ast.Name))


@cache
def _source(module: str) -> list[ast.stmt]:
    package, *parts = module.split(".")
    # Of the package alone: to find a module, the packages around it would be imported.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise OSError(f"{package} has no source.")
    path = Path(spec.origin)
    if parts:
        path = path.parent.joinpath(*parts)
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8")).body
