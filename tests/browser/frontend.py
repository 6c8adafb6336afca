"""The front end's build hook, loaded from the file where hatchling finds it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

HOOK = Path(__file__).parents[2] / "flaskchat" / "frontend" / "hatch_build.py"


def load_hook(path: Path = HOOK) -> ModuleType:
    spec = importlib.util.spec_from_file_location("flaskchat_hatch_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
