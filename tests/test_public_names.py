"""The public names: sorted, complete, and each with a word about what it is."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import flaskchat


def defined() -> set[str]:
    """Public names that `flaskchat/__init__.py` itself imports or assigns (its submodules are no names of its own)."""
    names: set[str] = set()
    for node in ast.parse(Path(flaskchat.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def test_the_public_names_are_sorted() -> None:
    assert list(flaskchat.__all__) == sorted(flaskchat.__all__)


def test_the_public_names_are_all_there() -> None:
    assert set(flaskchat.__all__) - {"__version__"} == defined()
    assert all(hasattr(flaskchat, name) for name in flaskchat.__all__)


def test_each_public_name_is_documented() -> None:
    silent = [
        name
        for name in flaskchat.__all__
        if (inspect.isclass(value := getattr(flaskchat, name)) or callable(value)) and not (value.__doc__ or "").strip()
    ]
    assert silent == []


def test_the_extension_is_a_public_name() -> None:
    assert "FlaskChat" in flaskchat.__all__
