"""A disk that is full or fails when a test says so, for the database's files of one server and nobody else.

The fault is injected into the server's system calls (faultydisk.c): it needs a C compiler, and no right to mount.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).with_name("faultydisk.c")
FAULTS = {"full": b"f", "writes fail": b"w", "syncs fail": b"s", "nothing works": b"r"}


class Disk:
    """`settings` go into the environment of the servers whose disk this is."""

    def __init__(self, folder: Path) -> None:
        library = folder / "faultydisk.so"
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, timeout=60)
        self._control = folder / "faultydisk"
        self._control.write_bytes(b"\0")
        self.settings: dict[str, object] = {"LD_PRELOAD": library, "FAULTY_DISK": self._control}

    @contextlib.contextmanager
    def fault(self, name: str) -> Iterator[None]:
        self._set(FAULTS[name])
        try:
            yield
        finally:
            self._set(b"\0")

    def _set(self, byte: bytes) -> None:
        with self._control.open("r+b") as file:  # in place: the servers have the file mapped
            file.write(byte)
