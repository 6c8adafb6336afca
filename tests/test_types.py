"""mypy, strict, over the package: a test, so that it takes its time beside the others."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conftest import ROOT


def test_the_package_has_no_error_of_types() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"no issues found in (\d+) source files", done.stdout)
    assert found is not None
    assert int(found[1]) > 80, "it looked at nothing"
