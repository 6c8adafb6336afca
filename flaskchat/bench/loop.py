"""A child process with one selector loop, told what to do by JSON lines on its standard input.

It answers each line with one on its standard output, and ends when its input does: so it ends with whoever started it,
however that one ended.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import selectors
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

FILES = 1 << 20


def raise_files() -> int:
    """Take as many descriptors as the system allows: a stream is one.

    :returns: how many these are.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # macOS has a limit of its own below the hard one
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return most if soft == resource.RLIM_INFINITY else soft


def cut(sock: socket.socket) -> None:
    """Close it, whatever state it is in."""
    with contextlib.suppress(OSError):
        sock.close()


class Loop:
    """`self.commands` maps the name of a command to what does it; that answers by `say`, now or later."""

    def __init__(self) -> None:
        self.commands: dict[str, Callable[[Any], None]] = {}
        self.selector = selectors.DefaultSelector()
        self._line = b""
        self._over = False
        raise_files()
        os.set_blocking(sys.stdin.fileno(), False)
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._listen)
        # nothing here makes cycles that last, and a collection would look like somebody's delay
        gc.disable()

    def run(self) -> None:
        """Until the input ends."""
        while not self._over:
            for key, _ in self.selector.select(self.patience()):
                key.data()
            self.turn()

    def patience(self) -> float:
        """Seconds to wait at most for something to happen."""
        raise NotImplementedError

    def turn(self) -> None:
        """What is due by time."""
        raise NotImplementedError

    def say(self, answer: object) -> None:
        os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")

    def cpu(self) -> float:
        """Seconds that this process has computed."""
        return time.process_time()

    def _listen(self) -> None:
        data = os.read(sys.stdin.fileno(), 1 << 20)
        self._over = not data
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            for name, value in json.loads(line).items():
                self.commands[name](value)
