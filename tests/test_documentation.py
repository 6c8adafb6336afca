"""What the documentation says of settings, tests, files and code is so."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.test_deploy import DEPLOY, ROOT, load


def test_the_table_of_settings_is_in_step() -> None:
    settings = load(DEPLOY / "settings.py", "deploy_settings")
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert settings.with_table(text) == text, "run: python deploy/settings.py"


def test_the_table_needs_its_marks() -> None:
    settings = load(DEPLOY / "settings.py", "deploy_settings")
    with pytest.raises(ValueError, match="expected the marks"):
        settings.with_table("# no marks\n")


def test_the_documentation_names_no_setting_that_is_not_there() -> None:
    from flaskchat.config import SETTINGS

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


def test_the_changes_begin_with_the_version_of_the_package() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGES.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.M)[0] == document["project"]["version"]
