"""Imports point down. The order below is DESIGN's, one room after the other; whoever adds a module gives it a place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "flaskchat"

# A room is a module of the package, or a folder in it. Each may import those below it, and nothing above.
ROOMS = (
    # what a host project sees
    "__init__", "testing", "extension", "cli", "openapi", "bench",
    # HTTP
    "views", "state",
    # who may do what, and the use cases
    "security", "chat", "export",
    # an operator's commands
    "transfer", "audit", "backup",
    # the life of a run, in one worker
    "runtime", "forget", "runs", "titles", "rechecks", "readers", "past", "reader", "bodies", "limits", "sweep",
    # the tick
    "pump", "finisher", "feed", "ear", "live", "poller", "replay", "metrics", "server", "outlet", "watch", "memory",
    "nodes", "places",
    # the outside: models, the log, the store
    "providers", "log", "store",
    # what everybody uses
    "tasks", "sse", "config", "errors", "models", "signals",
)  # fmt: skip
RANK = {room: number for number, room in enumerate(ROOMS)}

Import = tuple[str, str, int]


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "frontend" not in path.relative_to(PACKAGE).parts]


def room_of(name: str) -> str:
    """`flaskchat.store.sql` is in the room `store`; `flaskchat` itself is `__init__`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def name_of(path: Path) -> str:
    parts = ["flaskchat", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(source: str, name: str, *, package: bool) -> Iterator[tuple[str, int]]:
    """Every module that the source imports, wherever in it, with the line; for `from . import a` the module a."""
    folder = name.split(".") if package else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from .. import tasks` imports a module, `from ..errors import X` a name out of one
            for alias in node.names if module == "flaskchat" else []:
                yield f"flaskchat.{alias.name}", node.lineno
            if module != "flaskchat":
                yield module, node.lineno


def upward(source: str, name: str, *, package: bool = False) -> list[str]:
    """What is wrong with the imports of one module, in words."""
    wrong = []
    room = room_of(name)
    for target, line in imports(source, name, package=package):
        if not target.startswith("flaskchat.") or (other := room_of(target)) == room:
            continue
        if other not in RANK:
            wrong.append(f"{name}:{line} imports {target}, which has no place in ROOMS")
        elif RANK[other] <= RANK[room]:
            wrong.append(f"{name}:{line} imports {target}, which is above it")
    return wrong


def touches_request(source: str) -> list[int]:
    """Lines that import flask's `request`, or reach it through the module."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("flask", "flask.globals"):
            lines += [node.lineno for alias in node.names if alias.name in ("request", "request_ctx")]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "flask.request":
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_every_module_has_a_place_and_imports_point_down(path: Path) -> None:
    name = name_of(path)
    assert room_of(name) in RANK, f"give {name} a place in ROOMS"
    assert upward(path.read_text(encoding="utf-8"), name, package=path.name == "__init__.py") == []


def modules_from(room: str) -> list[Path]:
    return [path for path in modules() if RANK.get(room_of(name_of(path)), 0) >= RANK[room]]


@pytest.mark.parametrize("path", modules_from("chat"), ids=name_of)
def test_the_use_cases_and_what_is_below_them_know_no_flask(path: Path) -> None:
    found = imports(path.read_text(encoding="utf-8"), name_of(path), package=path.name == "__init__.py")
    assert [line for target, line in found if target.split(".")[0] in ("flask", "werkzeug")] == []


@pytest.mark.parametrize("path", [path for path in modules() if room_of(name_of(path)) != "views"], ids=name_of)
def test_only_views_touch_the_request(path: Path) -> None:
    assert touches_request(path.read_text(encoding="utf-8")) == []


def test_these_tests_see_what_they_look_for() -> None:
    assert upward("from ..chat import Chat", "flaskchat.store.sql") == [
        "flaskchat.store.sql:1 imports flaskchat.chat, which is above it"
    ]
    assert upward("def f():\n    from . import runs", "flaskchat.pump") == [
        "flaskchat.pump:2 imports flaskchat.runs, which is above it"
    ]
    assert upward("import flaskchat.views.page", "flaskchat.security")
    assert upward("from .views import page", "flaskchat", package=True) == []
    assert upward("from ..nowhere import x", "flaskchat.views.page")
    assert upward("from .. import errors, tasks\nfrom .base import Store\nimport os", "flaskchat.store.sql") == []
    assert touches_request("import flask\nflask.request.path") == [2]
    assert touches_request("from flask import Flask, request") == [1]
