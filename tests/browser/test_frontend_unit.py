"""The front end's types and its own tests, on the TypeScript sources; and the build hook."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from .frontend import HOOK, load_hook

FRONTEND = HOOK.parent


@pytest.fixture(scope="module")
def node() -> list[str]:
    """Node and npm, with node_modules in place."""
    hook = load_hook()
    try:
        found: list[str] = hook.toolchain()
    except hook.BuildError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error).splitlines()[0])
    return found


def test_the_front_end_passes_its_own_tests(node: list[str]) -> None:
    path = os.pathsep.join([str(Path(node[0]).parent), os.environ["PATH"]])
    process = subprocess.Popen(
        [*node, "test", "--loglevel=error"], cwd=FRONTEND, env={**os.environ, "PATH": path, "NO_COLOR": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        # npm leaves what it started behind when it is killed, and a test that hangs would spin for ever
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, output[-12000:]
    passed = re.search(r"^\D*pass (\d+)$", output, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) >= 30, "the tests were not found"


def test_the_lock_file_names_no_registry() -> None:
    lock = (FRONTEND / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert "registry" not in lock


def test_no_source_hands_text_to_a_parser_of_markup() -> None:
    forbidden = re.compile(r"(inner|outer)HTML|insertAdjacentHTML|unsafe(HTML|SVG)|document\.write|DOMParser|eval\(")
    for source in (FRONTEND / "src").glob("*.ts"):
        assert not forbidden.search(source.read_text()), source.name


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The front end without what was built, in a package of its own."""
    target = tmp_path / "flaskchat" / "frontend"
    shutil.copytree(FRONTEND, target, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    return target


def test_a_build_is_done_once_and_again_when_a_source_changes(copy: Path, node: list[str]) -> None:
    (copy / "node_modules").symlink_to(FRONTEND / "node_modules", target_is_directory=True)
    hook = load_hook(copy / "hatch_build.py")
    static = copy.parent / "static"
    assert hook.build() is True
    assert {file.name for file in static.iterdir()} >= {"flaskchat.js", "page.css", "icon.svg", "LICENSES.txt"}
    assert "sourceMappingURL" not in (static / "flaskchat.js").read_text()
    assert hook.build() is False
    (static / "left-over.js").write_text("old")
    (copy / "src" / "words.ts").write_text((copy / "src" / "words.ts").read_text().replace("Stopping…", "Stopping now"))
    assert hook.build() is True
    assert "Stopping now" in (static / "flaskchat.js").read_text()
    assert not (static / "left-over.js").exists()


def test_a_build_that_fails_says_what_failed_and_leaves_the_last_one(copy: Path, node: list[str]) -> None:
    (copy / "node_modules").symlink_to(FRONTEND / "node_modules", target_is_directory=True)
    hook = load_hook(copy / "hatch_build.py")
    hook.build()
    before = (copy.parent / "static" / "flaskchat.js").read_bytes()
    (copy / "src" / "words.ts").write_text("export const broken = ;")
    with pytest.raises(hook.BuildError, match=r"bundling the page ended with 1[\s\S]*words\.ts"):
        hook.build()
    assert (copy.parent / "static" / "flaskchat.js").read_bytes() == before


def test_an_npm_that_fails_is_told_in_its_own_words(copy: Path) -> None:
    lock = copy / "package-lock.json"
    lock.write_text(lock.read_text().replace('"node_modules/lit"', '"node_modules/other"'))
    hook = load_hook(copy / "hatch_build.py")
    with pytest.raises(hook.BuildError, match=r"npm ci ended with 1[\s\S]*package-lock\.json"):
        hook.build()
    assert not (copy.parent / "static").exists()


def test_the_bundle_stays_small(node: list[str]) -> None:
    import gzip

    hook = load_hook()
    hook.build()
    size = len(gzip.compress((hook.STATIC / "flaskchat.js").read_bytes(), 9))
    assert size <= 35_500, f"{size} bytes: 30 kB of script and 5 kB of styles are the aim"
