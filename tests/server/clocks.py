"""A wall clock that a test sets while a server runs: for all its processes, or another one for each.

The time is changed within the processes (movedclock.c), so it needs a C compiler, and no right to set the machine's.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("movedclock.c")
ENTRIES = 16
HOUR = 3600
DAY = 24 * HOUR


class Clocks:
    """`settings` go into the environment of the servers whose clocks these are."""

    def __init__(self, folder: Path) -> None:
        library = folder / "movedclock.so"
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, timeout=60)
        self._file = folder / "movedclock"
        self._file.write_bytes(bytes(16 * ENTRIES))
        self._own: list[int] = []
        self.settings: dict[str, object] = {"LD_PRELOAD": library, "MOVED_CLOCK": self._file}

    def set(self, seconds: float, pid: int = 0) -> None:
        """Put the clock so far ahead of the machine's: everybody's, or that of one process."""
        if pid and pid not in self._own:
            self._own.append(pid)
        entry = self._own.index(pid) + 1 if pid else 0
        with self._file.open("r+b") as file:  # in place: the servers have it mapped
            file.seek(16 * entry)
            file.write(struct.pack("qq", pid, int(seconds * 1e9)))
