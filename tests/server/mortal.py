"""A server that dies with its Nth write to the database, wherever it stands then.

The count and the death are in the process's own system calls (mortal.c): it needs a C compiler, and no right to trace.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("mortal.c")


class Mortal:
    """`settings` go into the environment of the servers that are to die."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("cc") is None:
            assert not os.environ.get("CI"), "a C compiler is missing"
            pytest.skip("there is no C compiler")
        library = folder / "mortal.so"
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
        subprocess.run(command, check=True, timeout=60)
        self._control = folder / "mortal"
        self._seen = folder / "mortal.seen"
        self._times = 0
        self.settings: dict[str, object] = {"LD_PRELOAD": library, "MORTAL": self._control}

    def die_at(self, number: int, *, half: bool = False) -> None:
        """One process dies with its write of that number, counted from now. 0: none does.

        :param half: whether the first half of that write is still done.
        """
        with contextlib.suppress(FileNotFoundError):
            self._seen.unlink()
        new = self._control.with_suffix(".new")
        self._times += 1
        new.write_text(f"{number} {'half' if half else 'not'} #{self._times}")
        new.rename(self._control)

    def live(self) -> int:
        """Nobody dies any more, and writes are counted anew.

        :returns: how many writes there were since `die_at`.
        """
        with contextlib.suppress(FileNotFoundError):
            self._control.unlink()
        return int(self._seen.read_text() or 0) if self._seen.exists() else 0

    @property
    def dead(self) -> bool:
        return not self._control.exists()
