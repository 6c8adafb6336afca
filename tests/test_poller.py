"""The selector and its bell."""

from __future__ import annotations

import os
from pathlib import Path

from flaskchat.poller import Poller


def test_a_bell_that_is_rung_after_the_end_writes_into_nobody_s_file(tmp_path: Path) -> None:
    poller = Poller()
    poller.close()
    files = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(8)]
    try:
        poller.ring()
        assert [os.fstat(file).st_size for file in files] == [0] * len(files)
    finally:
        for file in files:
            os.close(file)
