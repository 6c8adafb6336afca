"""How the files of the tests are handed out: each once, those that wait beside those that compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lanes import COMPUTING, WAITING, Lanes

CASE = "test_a"


def test_every_file_that_is_named_is_there_and_named_once() -> None:
    there = [path.stem for path in Path(__file__).parent.rglob("test_*.py")]
    named = [*WAITING, *COMPUTING]
    assert [name for name in named if name not in there] == []
    assert len(named) == len(set(named))


class Node:
    """A process of xdist's, as the scheduler sees it."""

    def __init__(self) -> None:
        self.gateway, self.id = self, "gw"
        self.shutting_down = False
        self.got: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.got += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def handed_out(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, files: list[str]) -> list[list[str]]:
    """What each of four processes is given that all run equally fast: the files' names in order."""
    monkeypatch.setattr(pytestconfig.option, "tx", ["4*popen"], raising=False)
    monkeypatch.setattr(pytestconfig.option, "loadscopereorder", False, raising=False)
    scheduler: Any = Lanes(pytestconfig)
    nodes = [Node() for _ in range(4)]
    collection = [f"tests/{name}.py::{CASE}{number}" for name in files for number in range(4)]
    for node in nodes:
        scheduler.add_node(node)
        scheduler.add_node_collection(node, collection)
    scheduler.schedule()
    done = [0] * len(nodes)
    while scheduler.has_pending:
        for number, node in enumerate(nodes):
            if done[number] < len(node.got):
                scheduler.mark_test_complete(node, node.got[done[number]])
                done[number] += 1
    assert sorted(index for node in nodes for index in node.got) == list(range(len(collection)))
    return [[files[index // 4] for index in node.got[::4]] for node in nodes]


def test_the_last_of_the_processes_takes_the_files_that_wait(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    *three, last = handed_out(pytestconfig, monkeypatch, [*WAITING[:4], *COMPUTING[:9], "test_a", "test_b", "test_c"])
    assert last == list(WAITING[:4])
    assert not {name for files in three for name in files} & set(WAITING)
    assert [files[0] for files in three] == list(COMPUTING[:3])


def test_whoever_is_free_takes_what_is_left_of_the_other_kind(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    *three, last = handed_out(pytestconfig, monkeypatch, [*WAITING[:9], *COMPUTING[:3]])
    assert all(set(files) & set(WAITING) for files in three)
    assert not set(last) & set(COMPUTING)
    *three, last = handed_out(pytestconfig, monkeypatch, [WAITING[0], *COMPUTING[:11]])
    assert set(last) & set(COMPUTING)
