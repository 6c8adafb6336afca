"""What the documentation says of settings, tests, files and code is so."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from flaskchat import errors, models
from flaskchat.config import SETTINGS
from tests.test_deploy import DEPLOY, ROOT, load


def test_the_tables_of_settings_are_in_step() -> None:
    settings = load(DEPLOY / "settings.py", "deploy_settings")
    sizes = {}
    for path, chosen in settings.TABLES.items():
        text = path.read_text(encoding="utf-8")
        assert settings.with_table(text, chosen) == text, "run: python deploy/settings.py"
        sizes[path] = len(chosen)
    assert sizes == {DEPLOY / "README.md": len(SETTINGS), ROOT / "README.md": len(settings.FIRST)}


def test_the_table_needs_its_marks() -> None:
    settings = load(DEPLOY / "settings.py", "deploy_settings")
    with pytest.raises(ValueError, match="expected the marks"):
        settings.with_table("# no marks\n", [])


def test_the_documentation_names_no_setting_that_is_not_there() -> None:
    known = {setting.name for setting in SETTINGS}
    known |= {"FLASKCHAT_DATA", "FLASKCHAT_SECRET_KEY", "FLASKCHAT_TRUSTED_PROXIES", "FLASKCHAT_IDENTITY_HEADER"}
    files = [ROOT / "README.md", ROOT / "CHANGES.md", *(path for path in DEPLOY.iterdir() if path.is_file())]
    for path in files:
        named = set(re.findall(r"FLASKCHAT_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8")))
        assert named <= known, path.name


def test_links_within_the_documentation_lead_somewhere() -> None:
    for path in (ROOT / "README.md", DEPLOY / "README.md", ROOT / "CHANGES.md"):
        for target in re.findall(r"(?<!!)\[[^\]]+\]\((?!https?:|#)([^)]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target.partition("#")[0]).exists(), f"{path.name}: {target}"


def test_the_tests_that_the_promises_name_are_there() -> None:
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in written] == []


def test_python_in_the_documentation_is_python() -> None:
    for path in (ROOT / "README.md", DEPLOY / "README.md"):
        for code in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
            compile(code, str(path), "exec")


def rows(heading: str) -> list[list[str]]:
    """The table of a section of README.md, cell by cell, without its head."""
    _, _, text = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"\n### {heading}\n")
    lines = re.findall(r"^\|(.*)\|$", text.partition("\n#")[0], re.M)
    return [[cell.strip() for cell in line.split("|")] for line in lines[2:]]


def named(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_every_event_is_documented_with_all_its_fields_and_no_other() -> None:
    found = rows("The events of a stream")
    kinds = [*get_args(models.Event), models.Reset]
    assert [(named(name), named(data)) for name, data, _ in found] == [
        ([kind.event], list(kind.__struct_fields__)) for kind in kinds
    ]
    (done,) = (words for name, _, words in found if named(name) == ["done"])
    assert set(named(done)) >= set(models.Usage.__struct_fields__)
    ends = {named(name)[0] for name, _, words in found if words.startswith("the end")}
    assert ends == models.TERMINAL_EVENTS


def test_every_code_of_an_error_is_documented_with_its_status_and_no_other() -> None:
    found = rows("The codes of errors")
    said = [(int(status), named(codes)) for status, codes, _ in found if status.isdecimal()]
    other = {405: ["method_not_allowed"], 500: [errors.FlaskChatError.code]}  # of Flask, and of what nobody expects
    assert said == sorted((errors.problem_codes() | other).items())
    assert [named(codes) for status, codes, _ in found if not status.isdecimal()] == [errors.model_codes()]


def test_the_example_of_a_project_s_own_tests_runs_as_it_is_shown(tmp_path: Path) -> None:
    """In a project whose settings name a model that costs money, a database in use, and a limit that is used up."""
    chapter = (ROOT / "README.md").read_text(encoding="utf-8").partition("### Test your own chat\n")[2]
    files = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", chapter.partition("\n### ")[0], re.M | re.S)
    assert [name for name, _ in files] == ["yourapp.py", "test_yourapp.py"]
    for name, code in files:
        (tmp_path / name).write_text(code, encoding="utf-8")
    (tmp_path / "settings.py").write_text(
        f"FLASKCHAT_DATABASE_URL = 'sqlite:///{tmp_path}/mine.sqlite3'\n"
        "FLASKCHAT_MODEL = 'openai:gpt-5'\n"
        "FLASKCHAT_OPENAI_API_KEY = 'sk-mine'\n"
        "FLASKCHAT_OPENAI_BASE_URL = 'http://127.0.0.1:9/v1'\n"
        "FLASKCHAT_MESSAGES_PER_MINUTE = 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error",
         "--rootdir", str(tmp_path), "--basetemp", str(tmp_path / "temporary"), str(tmp_path / "test_yourapp.py")],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["settings.py", "temporary", "test_yourapp.py", "yourapp.py"], "it wrote elsewhere"


def test_the_changes_begin_with_the_version_of_the_package() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGES.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.M)[0] == document["project"]["version"]
