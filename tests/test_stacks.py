"""The watch looks at the stack of a thread that goes on: what it finds must be that stack, and no worker may die of it.

What is tried may end the process, and so is in one of its own.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, FunctionType

from flaskchat.watch import stack_of
from tests.conftest import ROOT

SIZES = (1, 2, 3, 5, 8, 13, 21)
"""Of frames, in local variables: so that what stands where a frame was is seldom one that begins at the same place."""
DEPTH = 40
LOOKS = 120


def test_a_stack_is_whole_whatever_the_collector_runs_while_it_is_taken() -> None:
    looked = subprocess.run(
        [sys.executable, "-m", "tests.test_stacks"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert (looked.returncode, looked.stdout) == (0, f"{LOOKS} stacks\n"), looked.stderr


class Descent:
    """A thread that calls and returns for ever, with frames of all sizes."""

    def __init__(self) -> None:
        self.calls = 0
        given = [tuple(object() for _ in range(size)) for size in SIZES]
        functions = [self._function(size) for size in SIZES]
        self._ways = list(zip(functions, given, strict=True))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _function(self, size: int) -> Callable[..., None]:
        """Of so many arguments."""
        names = ", ".join(f"argument{number}" for number in range(size))
        text = f"def down(self, left, {names}):\n    self.calls += 1\n    left and self.call(left)"
        code = compile(text, "descent", "exec")
        return FunctionType(next(one for one in code.co_consts if hasattr(one, "co_code")), globals())

    def call(self, left: int) -> None:
        down, arguments = self._ways[(self.calls * 31 // 5 + left) % len(self._ways)]
        down(self, left - 1, *arguments)

    def _run(self) -> None:
        while True:
            self.call(DEPTH)


class Finalized:
    """Garbage whose finalizer lets the other thread go on until its whole stack is another."""

    def __init__(self, descent: Descent, looker: int) -> None:
        self._descent, self._looker, self._me = descent, looker, self

    def __del__(self) -> None:
        if threading.get_ident() == self._looker:
            until = self._descent.calls + 8 * DEPTH
            while self._descent.calls < until:
                time.sleep(0)


def look() -> int:
    """:returns: how many stacks were found, all of them whole."""
    descent = Descent()
    ident = descent.thread.ident
    assert ident is not None
    for number in range(LOOKS):
        gc.collect()
        Finalized(descent, threading.get_ident())
        gc.set_threshold(gc.get_count()[0] + 1 + number % 60)  # somewhere within what follows
        found = stack_of(ident)
        gc.set_threshold(700)
        assert all(type(frame) is FrameType for frame in found), found
        assert found[0].f_code.co_name == "_bootstrap"
    assert stack_of(-1) == []
    return LOOKS


if __name__ == "__main__":
    print(f"{look()} stacks", flush=True)
    os._exit(0)  # the other thread goes on for ever
