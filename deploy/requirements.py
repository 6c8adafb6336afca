"""Print the pinned, hashed requirements of a checkout: `deploy/requirements.py [--build] [--extra NAME] [--dev]`.

pyproject.toml says what is needed, constraints.txt pins all of it with hashes, and this prints the part of the second
that belongs to the first, ready for `pip install --require-hashes -r`. (pip takes no hashes from a `-c` file for what
is named without one, so the part has to be cut out.) `--open` prints pyproject's own lines instead, from which
constraints.txt is made; its first lines say how.

Uses nothing but the standard library: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# Needed on some of the supported Pythons only, and not on the one that constraints.txt is made with: redis-py wants it
# before 3.11.3, and Debian 12 has 3.11.2.
ELSEWHERE = {"async-timeout": "redis"}

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def canonical(requirement: str) -> str:
    """The name in a requirement, as pip compares names."""
    match = NAME.match(requirement)
    if match is None:
        raise ValueError(f"not a requirement: {requirement!r}")
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def open_requirements(document: dict[str, Any], *, build: bool, extras: list[str], dev: bool) -> list[str]:
    """The lines of pyproject.toml, without versions pinned."""
    project = document["project"]
    lines: list[str] = list(project["dependencies"])
    if build or dev:
        lines += document["build-system"]["requires"]
    for extra in project["optional-dependencies"] if dev else extras:
        lines += project["optional-dependencies"][extra]
    if dev:
        lines += document["dependency-groups"]["dev"]
        lines += ELSEWHERE
    return sorted(set(lines))


def pinned(constraints: str) -> dict[str, tuple[str, set[str]]]:
    """Each package's block of constraints.txt, with the names of what needs it (the `# via` comments)."""
    blocks: dict[str, tuple[str, set[str]]] = {}
    for block in re.findall(r"^[a-z0-9].*(?:\n[ \t]+.*)+", constraints, re.M):
        lines = block.split("\n")
        via = " ".join(line for line in lines if line.lstrip().startswith("#")).replace("#", " ").replace("via", " ", 1)
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        blocks[canonical(lines[0])] = text, {canonical(name) for name in re.split(r"[,\s]+", via) if NAME.match(name)}
    for name, parent in ELSEWHERE.items():
        blocks[name][1].add(parent)
    return blocks


def locked(blocks: dict[str, tuple[str, set[str]]], roots: set[str]) -> list[str]:
    """The blocks of `roots` and of everything they need, in the order of the file."""
    missing = sorted(roots - blocks.keys())
    if missing:
        raise SystemExit(f"constraints.txt does not pin {', '.join(missing)}: make it again as its first lines say")
    wanted, grown = set(roots), True
    while grown:
        more = {name for name, (_, parents) in blocks.items() if parents & wanted} - wanted
        wanted |= more
        grown = bool(more)
    return [text for name, (text, _) in blocks.items() if name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the pinned, hashed requirements of this checkout.")
    parser.add_argument("--build", action="store_true", help="what building the package needs, too")
    parser.add_argument("--extra", action="append", default=[], help="an extra of the package, such as redis")
    parser.add_argument("--dev", action="store_true", help="everything: build, all extras, the development group")
    parser.add_argument("--open", action="store_true", help="pyproject's own lines, neither pinned nor complete")
    options = parser.parse_args()
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = open_requirements(document, build=options.build, extras=options.extra, dev=options.dev)
    if not options.open:
        constraints = (ROOT / "deploy" / "constraints.txt").read_text(encoding="utf-8")
        lines = locked(pinned(constraints), {canonical(line) for line in lines})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
