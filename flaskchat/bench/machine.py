"""What a process uses, as Linux's /proc tells it, and what this machine is."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import msgspec

from ..store.sqlite import sqlite_module

PROC = Path("/proc")


class Machine(msgspec.Struct, frozen=True):
    cores: int
    system: str
    python: str
    gunicorn: str
    gevent: str
    sqlite: str
    load: float
    """Processes that were running or waiting to, on average of the last minute, before anything was measured."""

    def __str__(self) -> str:
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return (
            f"{cores}, {self.system}, Python {self.python}, gunicorn {self.gunicorn}, gevent {self.gevent}, "
            f"SQLite {self.sqlite}"
        )

    @property
    def busy(self) -> bool:
        """Whether something else was computing."""
        return self.load > self.cores / 4


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def this_machine() -> Machine:
    return Machine(
        cores=cores(), system=f"{platform.system()} {platform.release()}", python=platform.python_version(),
        gunicorn=metadata.version("gunicorn"), gevent=metadata.version("gevent"),
        sqlite=sqlite_module().sqlite_version, load=os.getloadavg()[0],
    )  # fmt: skip


def measurable() -> bool:
    """Whether the functions below can tell anything here."""
    return cpu([os.getpid()]) is not None and memory([os.getpid()]) is not None


def cpu(pids: Iterable[int]) -> float | None:
    """Seconds that these processes have computed, all threads, in user and kernel mode; None where nobody tells."""
    total = 0
    for pid in pids:
        try:
            # what follows the name, which is in brackets and may hold anything: proc(5), fields 14 and 15
            fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        except (OSError, IndexError):
            return None
    return total / os.sysconf("SC_CLK_TCK")


def memory(pids: Iterable[int]) -> int | None:
    """Bytes that these processes have in memory, what they share divided among those who share it (Pss)."""
    total = 0
    for pid in pids:
        try:
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
        except (OSError, StopIteration):
            return None
    return total
